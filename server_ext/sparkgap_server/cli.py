"""The command ``sparkgap-server``: starts a server, builds the shim for a cluster, tells which Java is used."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from sparkgap_server.java import JavaMissing, find_java
from sparkgap_server.local import LocalServer, ServerFailed
from sparkgap_server.local_cluster import LocalCluster
from sparkgap_server.shim import ShimFailed, build_jar


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of ``sparkgap-server``."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.command(options))
    except (JavaMissing, ServerFailed, ShimFailed) as failure:
        sys.exit(f"sparkgap-server: {failure}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparkgap-server", description="Runs or equips a Spark Connect server for sparkgap."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    start = commands.add_parser("start", help="start a Connect server with the extension on the loopback address")
    start.add_argument(
        "--master",
        default="local[*]",
        type=_master,
        help="Spark master, local-cluster[EXECUTORS,CORES,MEMORY] for example (default: %(default)s)",
    )
    start.add_argument("--port", type=int, default=0, help="port; 0 takes a free one (default: %(default)s)")
    start.add_argument(
        "--conf",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=_setting,
        help="a Spark setting; may be repeated",
    )
    start.add_argument("--no-token", action="store_true", help="let every local process in")
    start.set_defaults(command=_start)

    jar = commands.add_parser("jar", help="build the extension's jar for a cluster")
    jar.add_argument("--output", type=Path, required=True, metavar="FILE")
    jar.set_defaults(command=_jar)

    java = commands.add_parser("java-home", help="print the JAVA_HOME that the server would use")
    java.set_defaults(command=_java_home)
    return parser


def _master(text: str) -> str:
    try:
        LocalCluster.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _setting(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key.startswith("spark."):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form spark.KEY=VALUE")
    return key, value


def _start(options: argparse.Namespace) -> int:
    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    with LocalServer(
        options.master, port=options.port, conf=dict(options.conf), token="" if options.no_token else None
    ) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stderr.write(f"sparkgap-server: the log is {server.log}; Ctrl-C stops the server\n")
        return server.wait()


def _jar(options: argparse.Namespace) -> int:
    build_jar(options.output.absolute())
    sys.stderr.write(f"sparkgap-server: wrote {options.output}\n")
    return 0


def _java_home(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{find_java().resolve().parent.parent}\n")
    return 0
