"""Process entry of the nursery: the executor's JVM starts it, holds its standard input, and reads one hello line from its standard output."""

from __future__ import annotations

import argparse
import json
import os
from importlib import metadata
from pathlib import Path

from sparkgap_protos import PROTOCOL
from sparkgap_protos.codec import PYTHON

from sparkgap_server.nursery.nursery import Nursery, Settings


def main() -> None:
    """Say hello, then serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m sparkgap_server.nursery")
    parser.add_argument("--folder", type=Path, required=True, help="private folder for the socket and the ranks' files")
    parser.add_argument("--cores", type=int, required=True, help="cores of the executor, for model hosts")
    parser.add_argument(
        "--host-idle-seconds", type=float, required=True, help="an idle model host ends after this time"
    )
    options = parser.parse_args()

    os.setsid()  # a signal to the JVM's process group must not end the one who cleans up after it
    nursery = Nursery(Settings(options.folder, options.cores, options.host_idle_seconds))
    versions = {"python": PYTHON, "sparkgap": _installed("sparkgap"), "torch": _installed("torch")}
    hello = json.dumps({**versions, "protocol": PROTOCOL, "pid": os.getpid()})
    os.write(1, f"{hello}\n".encode())
    os.dup2(2, 1)  # from here on, what children print goes to the executor's log
    nursery.serve()


def _installed(package: str) -> str:
    """Its version without importing it: torch takes seconds, and the driver waits for the hello."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
