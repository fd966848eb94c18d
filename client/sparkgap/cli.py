"""The command ``sparkgap``: reads the command line, opens a session, and hands over to commands.py and checkup.py.

Only what a command needs is imported, behind the parser: ``sparkgap --help`` must not wait for pyspark.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

from sparkgap import __version__
from sparkgap.errors import PlanError, SparkgapError

_STATES = ("QUEUED", "STARTING", "RUNNING", "RETRYING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EPILOG = (
    "URL is that of Spark Connect, sc://HOST:PORT/;use_ssl=true;token=…, from --remote or the environment variable SPARK_REMOTE. "
    "A token belongs into the variable: other users of this machine can read command lines."
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of ``sparkgap``."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own words on a failed handshake, beside ours
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of pyspark, on its retries
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ranks print what this terminal may not be able to
    options = _parser().parse_args(arguments)
    try:
        status = options.command(options)
        sys.stdout.flush()
    except SparkgapError as error:
        sys.exit(f"sparkgap: {' '.join(str(error).split())}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        status = 0
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparkgap", description="Looks at a Spark server with sparkgap and at its training runs.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"sparkgap {__version__}")
    parser.add_argument("--remote", metavar="URL", help="the server (default: $SPARK_REMOTE)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, what: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG)
        # Suppressed, or its default would undo what stands before the command.
        made.add_argument("--remote", metavar="URL", default=argparse.SUPPRESS, help="the server")
        made.add_argument("--json", action="store_true", help="print JSON, for scripts")
        made.set_defaults(command=what)
        return made

    doctor = command("doctor", "check this client, the server and its executors, and say what does not fit", _doctor)
    doctor.add_argument("--try", dest="ranks", type=_positive, metavar="N", help="run something on N CPU ranks, too")

    runs = command("runs", "list this user's training runs, the newest first", _runs)
    runs.add_argument(
        "--state", action="append", type=str.upper, choices=_STATES, help="only those in this state; may be repeated"
    )
    runs.add_argument("--limit", type=_positive, metavar="N", help="only the newest N of them")

    logs = command("logs", "print what a run's ranks have printed", _logs)
    logs.add_argument("run", metavar="RUN", help="id of the run, or a beginning that no other run has")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends; Ctrl-C leaves it alone")
    logs.add_argument("--rank", action="append", type=_count, metavar="N", help="only this rank's; may be repeated")
    logs.add_argument("--since", type=_since, metavar="TIME", help="only since 30s, 10m, 2h, 1d, or an ISO 8601 time")
    logs.add_argument("--tail", type=_count, metavar="N", help="only the last N lines of those that are there now")

    cancel = command("cancel", "end runs in whatever state they are", _cancel)
    cancel.add_argument("runs", nargs="+", metavar="RUN", help="id of a run, or a beginning that no other run has")
    cancel.add_argument("--reason", default="cancelled on the command line", metavar="TEXT", help="said in its status")
    return parser


# ---- Words of the command line ----


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if (value := _count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return value


def _since(text: str) -> datetime:
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        return datetime.now(timezone.utc) - timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    try:
        when = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a time such as 2026-01-31T09:30 nor a span such as 10m"
        ) from None
    return when.astimezone()  # without a zone it is this machine's


def _remote(options: argparse.Namespace) -> str:
    url = options.remote or os.environ.get("SPARK_REMOTE")
    if not url:
        raise PlanError(
            "which server? Set SPARK_REMOTE to its URL (sc://HOST:PORT/;token=…), or pass --remote sc://HOST:PORT"
        )
    return str(url)


# ---- Commands ----


def _doctor(options: argparse.Namespace) -> int:
    from sparkgap import checkup

    return checkup.doctor(options.remote or os.environ.get("SPARK_REMOTE", ""), options.ranks, options.json)


def _runs(options: argparse.Namespace) -> int:
    from sparkgap import commands

    return _with_session(options, commands.list_runs, options.state or (), options.limit, options.json)


def _logs(options: argparse.Namespace) -> int:
    from sparkgap import commands

    choice = {"follow": options.follow, "ranks": options.rank or (), "since": options.since, "tail": options.tail}
    return _with_session(options, commands.show_logs, options.run, **choice, as_json=options.json)


def _cancel(options: argparse.Namespace) -> int:
    from sparkgap import commands

    return _with_session(options, commands.cancel, options.runs, options.reason, options.json)


def _with_session(options: argparse.Namespace, command: Callable[..., int], *arguments: Any, **more: Any) -> int:
    from sparkgap import channel

    with channel.connection(_remote(options)) as session:
        return command(session, *arguments, **more)
