"""The life of one rank, in the process that its keeper forked: environment, meeting point, user code, value or failure.

What it has to say goes to the keeper over `channel`; the end of the channel says that all has been said.
"""

from __future__ import annotations

import atexit
import os
import runpy
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkgap_protos import codec, places, reporting
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2, run_pb2

from sparkgap_server import sources, wire
from sparkgap_server.train import environment, exits
from sparkgap_server.train.failure import Unopenable, describe
from sparkgap_server.train.groups import keep_groups
from sparkgap_server.train.meeting import listen
from sparkgap_server.train.reports import Reporter

_CHUNK_BYTES = 1 << 20


class ResultTooLarge(RuntimeError):
    """A value is larger than the server takes."""


@dataclass(frozen=True)
class RankTask:
    """Everything that a rank needs; `private` is a folder that is removed after its end."""

    placement: pb.RankPlacement
    plan: plan_pb2.TrainPlan
    private: Path


def run(task: RankTask, channel: socket.socket) -> int:
    """Run the rank to its end and return its exit status; every way out has been told to the keeper before."""
    owner = os.getpid()
    try:
        status = _run(task, channel)
    except BaseException as error:
        if os.getpid() != owner:  # a process that user code forked; its end is told to nobody, as below
            return _print_end(error)
        status = _fail(task, channel, error)
    channel.close()
    atexit._run_exitfuncs()  # os._exit, which ends a forked child, skips them
    return status


def _run(task: RankTask, channel: socket.socket) -> int:
    placement = task.placement
    environment.apply(placement)
    keep_groups()
    _use_session_files(list(placement.python_path))
    store = listen(placement) if placement.rank == 0 else None
    if store is not None:
        wire.send(channel, pb.ADDRESS, pb.MeetingPoint(host=placement.host, port=store.port))
    body = _body(task)
    answer = wire.receive(channel)
    if answer is None:
        return 1  # the keeper is gone
    environment.meet(pb.MeetingPoint.FromString(answer.body))
    started = run_pb2.RankStarted(host=socket.gethostname(), pid=os.getpid())
    wire.send(channel, pb.EVENT, _event(placement, started=started))
    reporting.context = reporting.RankContext(
        attempt=placement.attempt, session_conf={each.key: each.value for each in placement.session_conf}
    )
    reporting.sink = reporter = Reporter(placement, channel)
    try:
        value = body()
    finally:
        reporter.finish()
    if started.pid != os.getpid():
        return 0  # a process that user code forked has come back from it too; it must not write into the channel
    for chunk in result(value, task):
        wire.send(channel, pb.RESULT, chunk)
    return 0


def _use_session_files(python_path: list[str]) -> None:
    """As in Spark's Python workers: modules are imported from the session's folder, and `SparkFiles` finds the others there."""
    if not python_path:
        return
    from pyspark.core.files import SparkFiles

    sys.path[:0] = python_path
    SparkFiles._root_directory = python_path[0]
    SparkFiles._is_running_on_worker = True


def _body(task: RankTask) -> Callable[[], Any]:
    if task.plan.WhichOneof("body") == "script":
        return _script(task.plan.script, task.private)
    try:
        sources.install(task.plan.function.modules, task.private, task.plan.function.files)
        function, args, kwargs = codec.unpack(task.plan.function)
    except Exception as error:
        raise Unopenable(error) from error
    return lambda: function(*args, **kwargs)


def _script(script: plan_pb2.Script, private: Path) -> Callable[[], None]:
    path = private / Path(places.of_file(script.name)).name
    is_folder = not script.source and any(file.path == "__main__.py" for file in script.files)
    folder = path if is_folder else private
    sources.install(script.modules, folder, script.files)
    if not is_folder:
        path.write_bytes(script.source)

    def run_script() -> None:
        sys.argv = [str(path), *script.arguments]
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if exits.status_of(end):
                raise
        exits.finish()  # before the run has succeeded: a thread may still write a checkpoint

    return run_script


def result(value: Any, task: RankTask) -> Iterator[bytes]:
    """Chunks of the value where the run's is made of it, else an empty one, which says that the rank came to its end."""
    data = b""
    rank, limit = task.placement.rank, task.placement.max_result_bytes
    if rank == 0 or task.plan.all_results:
        payload = codec.pack(value, f"the value that rank {rank} returned", advice=codec.RETURNED)
        if task.plan.all_results:
            payload = plan_pb2.Payload(ranks=[payload])
        data = payload.SerializeToString()
        if len(data) > limit:
            raise ResultTooLarge(
                f"rank {rank} returned {len(data)} bytes, spark.sparkgap.result.maxBytes allows {limit}: "
                "write large values to storage and return their path"
            )
    for start in range(0, max(1, len(data)), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


def _fail(task: RankTask, channel: socket.socket, error: BaseException) -> int:
    failure = describe(error, task.placement)
    _print(exits.last_words(error, failure.traceback))
    try:
        wire.send(channel, pb.FAILURE, failure)
    except OSError:
        return 1  # the keeper is gone, and with it everybody who would want to know
    return failure.exit_code or 1


def _print_end(error: BaseException) -> int:
    _print(exits.last_words(error, "".join(traceback.format_exception(error))))
    return exits.status_of(error)


def _print(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except Exception:
        return  # user code has closed or replaced the stream; the failure itself goes another way


def _event(placement: pb.RankPlacement, **kind: Any) -> run_pb2.RunEvent:
    return run_pb2.RunEvent(attempt=placement.attempt, rank=placement.rank, time=time.time_ns() // 1000, **kind)
