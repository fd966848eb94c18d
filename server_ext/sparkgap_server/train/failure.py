"""Describes why a rank failed, so that whoever waits for the run can say which rank it was and what it raised."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time

from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap_server import sources, tracebacks
from sparkgap_server.train.exits import status_of

_MAX_TEXT = 64 << 10
_MAX_PICKLE = 1 << 20  # a larger exception, one that carries a batch for example, arrives as its text

# What collectives say when another rank has gone; raised by the autograd engine too, so the place in the code does not tell.
_PEER_LOST = (
    "closed by peer",
    "reset by peer",
    "Connection refused",
    "Broken pipe",
    "NCCL error",
    "remote process exited",
)


class Unopenable(Exception):
    """The plan's function could not be unpickled here; wraps the reason."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


def describe(error: BaseException, placement: pb.RankPlacement) -> run_pb2.RankFailure:
    """The failure as a message; the traceback begins where user code begins."""
    message = _text(error)
    if isinstance(error, Unopenable):
        error = error.reason
        message = _unopenable(error)
    elif isinstance(error, ModuleNotFoundError):
        message = _missing(error)
    message += sources.advice_on(error)
    failure = run_pb2.RankFailure(
        rank=placement.rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        time=time.time_ns() // 1000,
        exception=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        message=message[:_MAX_TEXT],
        traceback=tracebacks.shown(error)[-_MAX_TEXT:],
        in_collective=_in_collective(error),
    )
    if isinstance(error, SystemExit):
        failure.exit_code = status_of(error)
        if error.code is None or isinstance(error.code, int):
            failure.message = f"exit status {failure.exit_code}"
    try:
        pickled = codec.pack(error, "the exception")
    except codec.NotPicklable:
        return failure
    if len(pickled.data) <= _MAX_PICKLE:
        failure.pickled.CopyFrom(pickled)
    return failure


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as reason:
        return f"<its text cannot be had: {type(reason).__name__}>"


def _unopenable(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{error}. The function needs the module {error.name!r}, which is not installed on the workers: install it there, "
            "or move what the function uses into the file that calls run, or name the module in modules="
        )
    return f"the function cannot be opened on the workers: {error}"


def _missing(error: ModuleNotFoundError) -> str:
    """With what to do about it, unless it is a part of a package that is there."""
    if not error.name or _is_there(error.name.partition(".")[0]):
        return _text(error)
    return (
        f"{error}. The training code needs the module {error.name!r}, which is not installed on the workers and was not sent along: "
        "install it there, or name the module in modules="
    )


def _is_there(top: str) -> bool:
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _in_collective(error: BaseException) -> bool:
    trace = error.__traceback__
    last = None
    while trace is not None:
        last, trace = trace, trace.tb_next
    inside = last is not None and "torch/distributed/" in last.tb_frame.f_code.co_filename
    return (inside and not isinstance(error, (ValueError, TypeError))) or (
        isinstance(error, RuntimeError) and any(text in _text(error) for text in _PEER_LOST)
    )
