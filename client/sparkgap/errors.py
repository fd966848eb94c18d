"""Every error that sparkgap raises at the client, by who has to act.

SparkgapError
├── PlanError            the caller: the plan can never work (also a ValueError)
│   └── RunNotFoundError the caller: no such run of this user
├── ExtensionError       the operator (also a RuntimeError)
│   ├── VersionError     versions of Python or of sparkgap do not fit
│   ├── ResourceError    the cluster cannot hold the plan
│   ├── SessionEndedError the caller: the session is over, whatever the server still holds; a new one is needed
│   ├── UnreachableError the server cannot be reached, or lets this client not in; of the command line only
│   └── ProtocolError    the server answers what this client does not understand
├── TrainingError        the user's code: a rank failed (also a RuntimeError)
│   └── RunLostError     the operator: the server ended while the run was alive
├── ResultError          the user's code: the run succeeded, and its value cannot be opened here (also a RuntimeError)
└── RunCancelledError    nobody: somebody cancelled the run (also a RuntimeError)

Errors inside a query, `predict_batch_udf`'s among them, arrive as Spark's own `PythonException` with the user's traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparkgap_protos import codec
from sparkgap_protos.v1 import run_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparkgap.run import Run


class SparkgapError(Exception):
    """Root of all errors of sparkgap."""


class PlanError(SparkgapError, ValueError):
    """The plan can never work, whatever the cluster; nothing was started."""


class RunNotFoundError(PlanError):
    """This user has no run with this id on the server."""


class ExtensionError(SparkgapError, RuntimeError):
    """The server lacks the extension, or the session is none of Spark Connect."""


class VersionError(ExtensionError):
    """Versions on the two sides do not fit."""


class ResourceError(ExtensionError):
    """The cluster cannot hold the plan: slots, GPUs or settings are missing."""


class SessionEndedError(ExtensionError):
    """The client's Spark session is over: it has expired, was stopped, or its server was started anew. The text says how to go on."""


class UnreachableError(ExtensionError):
    """The server cannot be reached, or does not let this client in; `found` and `advice` are the two halves of the text."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}: {advice}")
        self.found = found
        self.advice = advice


class ProtocolError(ExtensionError):
    """The server's answer cannot be understood."""


class RunCancelledError(SparkgapError, RuntimeError):
    """The run was cancelled; the text says why."""


class RemoteTraceback(Exception):
    """Carries a rank's traceback as text, for the chain of causes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f"\n{self._text}"


class RemoteError(Exception):
    """Stands for an exception of a rank whose class cannot be opened here, for want of its module for example."""


class TrainingError(SparkgapError, RuntimeError):
    """A rank failed; the first one's own exception is the `__cause__`.

    Attributes
    ----------
    rank : int or None
        The rank that failed first; None when Spark ended the run for another reason.
    host : str
        Where it ran.
    exit_code, signal : int
        How its process ended, where it ended without an exception; 0 otherwise.
    traceback : str
        Its traceback as it would have printed it; empty without an exception.
    last_lines : tuple of str
        The last lines that it printed, without its traceback.
    failures : tuple of RankFailure
        Every rank's failure that is known, the cause first; each has the fields above, and exception, message, pid and time.
    others : list of TrainingError
        The same for the other ranks, each an error of its own with its cause; ranks that Spark ended because the first had failed are not among them.
    """

    def __init__(self, message: str, failures: Sequence[run_pb2.RankFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        first = self.failures[0] if self.failures else run_pb2.RankFailure()
        self.rank = first.rank if self.failures else None
        self.host = first.host
        self.exit_code = first.exit_code
        self.signal = first.signal
        self.traceback = first.traceback
        self.last_lines = tuple(first.last_lines)
        self.others: list[TrainingError] = []

    @classmethod
    def of(cls, status: run_pb2.RunStatus) -> TrainingError:
        """The error for a failed run, with its cause attached."""
        if not status.failures:
            return cls(f"run {status.run_id} failed: {status.reason}")
        first = status.failures[0]
        others = sorted({failure.rank for failure in status.failures[1:]} - {first.rank})
        text = _sentence(first, status)
        if others:
            text += f" (then rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others))})"
        if not first.exception and first.last_lines:
            text += "\nIts last lines were:\n" + "\n".join(f"  {line}" for line in first.last_lines)
        error = cls(text, status.failures)
        error.__cause__ = _cause(first)
        for failure in status.failures[1:]:
            if failure.rank in others:
                others.remove(failure.rank)  # a rank that raised and was then killed has failed once
                other = cls(_sentence(failure, status), [failure])
                other.__cause__ = _cause(failure)
                error.others.append(other)
        return error


class RunLostError(TrainingError):
    """The server ended while the run was alive, and nothing started it again; the text says when the server was last alive."""

    @classmethod
    def of(cls, status: run_pb2.RunStatus) -> RunLostError:
        """The error for a lost run."""
        return cls(
            f"run {status.run_id} ({status.name}) is lost: {status.reason}. Nothing starts it again by itself: submit it under another run_id. "
            "What its ranks had printed and reported until then is in logs() and metrics()",
            status.failures,
        )


class ResultError(SparkgapError, RuntimeError):
    """The run has succeeded, and its value cannot be opened at this client; what went wrong is the `__cause__`.

    Attributes
    ----------
    run : Run
        The run, whose `logs` and `metrics` are there as ever.
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def what_happened(failure: run_pb2.RankFailure) -> str:
    """The exception with its text, or how the rank ended without one."""
    return f"{failure.exception}: {failure.message}" if failure.exception else failure.message


def _sentence(failure: run_pb2.RankFailure, status: run_pb2.RunStatus) -> str:
    name = status.name or status.run_id
    return f"rank {failure.rank} of {status.num_processes} of {name} failed on {failure.host}: {what_happened(failure)}"


def _cause(failure: run_pb2.RankFailure) -> BaseException | None:
    if not failure.exception:
        return None
    cause: BaseException = RemoteError(f"{failure.exception}: {failure.message}")
    if failure.HasField("pickled"):
        try:
            opened = codec.unpack(failure.pickled)
        except Exception:
            opened = None  # its class lives in a module that only the cluster has
        if isinstance(opened, BaseException) and not isinstance(opened, (SystemExit, KeyboardInterrupt, GeneratorExit)):
            cause = opened
    cause.__cause__ = RemoteTraceback(failure.traceback)
    return cause


_REFUSALS: dict[int, type[SparkgapError]] = {
    run_pb2.Refusal.PLAN: PlanError,
    run_pb2.Refusal.VERSION: VersionError,
    run_pb2.Refusal.RESOURCES: ResourceError,
    run_pb2.Refusal.RUN_NOT_FOUND: RunNotFoundError,
}


def refusal(message: run_pb2.Refusal) -> SparkgapError:
    """The exception for what the server refused."""
    return _REFUSALS.get(message.reason, ProtocolError)(message.message)
