"""The command ``sparkgap doctor``: asks this client, the server and, if wanted, a run of its own; doctor.py and verdicts.py judge what comes."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import textwrap
import uuid
from importlib import metadata
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap import __version__, channel, tables, trial
from sparkgap.doctor import server_checks
from sparkgap.errors import (
    ExtensionError,
    RunCancelledError,
    SparkgapError,
    TrainingError,
    UnreachableError,
    VersionError,
)
from sparkgap.verdicts import NOT_CHECKED, OK, PROBLEM, WARNING, Check, Client, client_checks

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession

_PACKAGES = (
    "pyspark", "pyspark-client", "pandas", "pyarrow", "numpy", "grpcio", "grpcio-status", "googleapis-common-protos", "protobuf",
)  # fmt: skip
_REST = "versions, executors, slots, GPUs, settings, artifacts"
_PIPE_WIDTH = 120


def doctor(url: str, ranks: int | None, as_json: bool) -> int:
    """Check everything, print it, and return 1 if something is a problem, 0 if not.

    Parameters
    ----------
    url
        The server's; empty where nobody has named one.
    ranks
        Of a run to try; None for no run.
    as_json
        Print one JSON object instead of lines.
    """
    client = installed()
    checks = client_checks(client)
    report = None
    if not url:
        advice = "set SPARK_REMOTE to the server's URL (sc://HOST:PORT/;token=…), or pass --remote sc://HOST:PORT"
        checks += [Check("connection", PROBLEM, "no server is named", advice), Check("server", NOT_CHECKED, _REST)]
    elif any(each.verdict == PROBLEM for each in checks):
        checks += [Check("connection", NOT_CHECKED, "pyspark does not work here"), Check("server", NOT_CHECKED, _REST)]
    else:
        found, report = _over_there(url, client, ranks)
        checks += found
    if as_json:
        sys.stdout.write(json.dumps(_fields(checks, client, report), indent=2) + "\n")
    else:
        _print(checks)
    return 1 if any(each.verdict == PROBLEM for each in checks) else 0


def installed() -> Client:
    """Versions in this Python; imports none of them."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Client(platform.python_version(), __version__, packages)


def _over_there(url: str, client: Client, ranks: int | None) -> tuple[list[Check], run_pb2.ServerReport | None]:
    checks: list[Check] = []
    report = None
    try:
        with channel.connection(url) as session:
            user = channel.user_of(session)
            whose = f"as user {user}" if user else "without a user's name"
            checks.append(Check("connection", OK, f"{channel.server_place(session)} answers, {whose}"))
            report = _report(session, checks)
            if report is not None:
                checks += server_checks(report, client)
                checks += [_artifacts(session), _trial(session, ranks)]
    except UnreachableError as error:  # also of a server that was lost meanwhile
        checks = [each for each in checks if each.name != "connection"]
        checks += [Check("connection", PROBLEM, error.found, error.advice), Check("server", NOT_CHECKED, _REST)]
    except SparkgapError as error:
        found, _, advice = str(error).partition(": ")
        checks.append(Check("connection", PROBLEM, found, advice))
    return checks, report


def _report(session: SparkSession, checks: list[Check]) -> run_pb2.ServerReport | None:
    """None, and why, where the server cannot give one."""
    try:
        channel.require_extension(channel.client_of(session))
    except VersionError as error:
        found, _, advice = str(error).partition(": ")
        checks.append(Check("extension", PROBLEM, found, advice))
    except ExtensionError:
        found = f"the server, Spark {session.version}, does not have sparkgap's"
        advice = "its operator adds sparkgap's jar and settings (deploy/spark-defaults.conf), or starts it with `sparkgap-server start`"
        checks.append(Check("extension", PROBLEM, found, advice))
    else:
        try:
            return channel.ask(session, server=pb.ServerQuery()).server
        except SparkgapError as error:
            advice = "install this client's release on the server"
            checks.append(
                Check("extension", PROBLEM, f"it is older than this client and gives no report: {error}", advice)
            )
    checks.append(Check("server", NOT_CHECKED, _REST))
    return None


def _artifacts(session: SparkSession) -> Check:
    """The way of a prediction's weights, with some bytes that the server cannot have yet."""
    data = f"sparkgap doctor {uuid.uuid4()}".encode()
    try:
        way = channel.held(session, hashlib.sha256(data).hexdigest(), data, "sparkgap doctor")
    except Exception as error:
        advice = (
            "weights travel by Spark Connect's AddArtifacts: a proxy before the server has to let its stream through"
        )
        return Check("artifacts", PROBLEM, f"an upload has failed: {str(error).partition(chr(10))[0]}", advice)
    if way == "HELD":
        return Check("artifacts", OK, f"{len(data)} bytes uploaded, and the server holds them")
    if way == "INLINE":
        found = "spark.io.encryption.enabled is true, so weights travel with each query, up to 120 MiB"
        return Check("artifacts", WARNING, found, "write larger weights to storage and carry their path")
    advice = (
        "look for errors of AddArtifacts in the server's log; a server behind a load balancer needs sticky sessions"
    )
    return Check("artifacts", PROBLEM, "the upload went through, but the server does not hold it", advice)


def _trial(session: SparkSession, ranks: int | None) -> Check:
    if ranks is None:
        return Check("trial run", NOT_CHECKED, "pass --try N to run something on N CPU ranks")
    try:
        found = trial.start(session, ranks)
    except (TrainingError, RunCancelledError, TimeoutError) as error:
        return Check("trial run", PROBLEM, " ".join(str(error).split()), "look at the checks above")
    except SparkgapError as error:
        found_text, _, advice = " ".join(str(error).split()).partition(": ")
        return Check("trial run", PROBLEM, found_text, advice)
    return Check(
        "trial run",
        OK,
        f"{ranks} rank{'s' if ranks > 1 else ''}: first line after {found.line_seconds:.2f} s ({found.line}), value after "
        f"{found.value_seconds:.2f} s",
    )


# ---- Output ----


def _fields(checks: list[Check], client: Client, report: run_pb2.ServerReport | None) -> dict[str, Any]:
    server = None
    if report is not None:
        server = json_format.MessageToDict(
            report, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        server["settings"] = {each.key: each.value for each in report.settings}
    return {
        "verdict": _worst(checks),
        "checks": [
            {"name": each.name, "verdict": each.verdict, "found": each.found, "advice": each.advice} for each in checks
        ],
        "client": {"python": client.python, "sparkgap": client.sparkgap, "packages": dict(client.packages)},
        "server": server,
    }


def _worst(checks: list[Check]) -> str:
    verdicts = {each.verdict for each in checks}
    return next(each for each in (PROBLEM, WARNING, OK) if each in verdicts)


def _print(checks: list[Check]) -> None:
    width = tables.terminal_width() or _PIPE_WIDTH
    names = max(len(each.name) for each in checks)
    margin = " " * (len(NOT_CHECKED) + 2 + names + 2)
    for each in checks:
        head = f"{each.verdict.ljust(len(NOT_CHECKED))}  {each.name.ljust(names)}  "
        text = textwrap.fill(
            tables.plain(each.found), width, initial_indent=head, subsequent_indent=margin, break_on_hyphens=False
        )
        sys.stdout.write(f"{text}\n")
        if each.advice:
            advice = textwrap.fill(
                tables.plain(each.advice), width,
                initial_indent=f"{margin}→ ", subsequent_indent=f"{margin}  ", break_on_hyphens=False,
            )  # fmt: skip
            sys.stdout.write(f"{advice}\n")
    counts = {verdict: sum(each.verdict == verdict for each in checks) for verdict in (PROBLEM, WARNING)}
    told = [f"{number} {verdict}{'' if number == 1 else 's'}" for verdict, number in counts.items() if number]
    sys.stdout.write(f"\n{' and '.join(told) or 'Everything fits'}.\n")
