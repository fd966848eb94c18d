"""What has to agree about the messages: the .proto files, the code generated from them, and the numbers that Scala repeats."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sparkgap_protos
from sparkgap_protos import PROTOCOL
from sparkgap_protos.v1 import node_pb2

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos" / "sparkgap_protos" / "v1"
JVM = ROOT / "server_ext" / "jvm"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A folder with what protoc makes of the .proto files now."""
    folder = tmp_path_factory.mktemp("generated")
    sources = [str(path.relative_to(ROOT / "protos")) for path in sorted(PROTOS.glob("*.proto"))]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={folder}", f"--pyi_out={folder}", *sources],
        cwd=ROOT / "protos", check=True, timeout=60,
    )  # fmt: skip
    return folder / "sparkgap_protos" / "v1"


@pytest.mark.parametrize("name", [f"{stem}_pb2.{kind}" for stem in ("plan", "run", "node") for kind in ("py", "pyi")])
def test_generated_code_is_up_to_date(generated, name):
    assert (PROTOS / name).read_text() == (generated / name).read_text(), "run `make protos`"


def test_nothing_generated_is_missing_or_left_over(generated):
    committed = {path.name for path in PROTOS.iterdir() if "_pb2" in path.name and path.suffix in (".py", ".pyi")}
    assert committed == {path.name for path in generated.iterdir()}


def test_scala_numbers_the_frames_as_node_proto_does():
    text = (JVM / "Nursery.scala").read_text()
    body = re.search(r"object FrameKind \{(.*?)\n\}", text, re.DOTALL)
    assert body is not None
    scala = {name: int(number) for name, number in re.findall(r"val (\w+) = (\d+)", body[1])}
    proto = {camel(name): number for name, number in node_pb2.FrameKind.items()}
    assert scala == {name: proto.get(name) for name in scala}
    assert {"Open", "Placement", "TrainPlan", "Result", "Exit"} <= set(scala)


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def test_scala_speaks_the_protocol_version_that_python_speaks():
    text = (JVM / "Schema.scala").read_text()
    assert re.findall(r"val Protocol = (\d+)", text) == [str(PROTOCOL)]


def test_both_sides_have_the_same_limits():
    text = (JVM / "PlanCheck.scala").read_text()
    scala = {name: int(number) for name, number in re.findall(r"val Most(\w+) = (\d+)", text)}
    python = {
        camel(name.removeprefix("MOST_")): getattr(sparkgap_protos, name)
        for name in dir(sparkgap_protos)
        if name.startswith("MOST_")
    }
    assert python == {name: scala.get(name) for name in python}
