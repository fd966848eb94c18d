"""The life of one rank, in the process that its keeper forked: environment, meeting point, user code, value or failure.

What it has to say goes to the keeper over `channel`; the end of the channel says that all has been said.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkgap_protos import codec, places, reporting
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2, run_pb2

from sparkgap_server import program, sources, wire
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
    status = _told(task, channel, owner, lambda: _run(task, channel))
    _close(channel, owner)
    atexit._run_exitfuncs()  # os._exit, which ends a forked child, skips them
    return status


def _told(task: RankTask, channel: socket.socket, owner: int, act: Callable[[], int]) -> int:
    try:
        return act()
    except BaseException as error:
        if os.getpid() != owner:  # a process that user code forked; its end is told to nobody, as below
            return _print_end(error)
        return _fail(task, channel, error)


def _run(task: RankTask, channel: socket.socket) -> int:
    placement = task.placement
    environment.apply(placement)
    sent = program.begin(task.private, [task.plan.name])
    keep_groups()
    _use_session_files(list(placement.python_path))
    store = listen(placement) if placement.rank == 0 else None
    if store is not None:
        wire.send(channel, pb.ADDRESS, pb.MeetingPoint(host=placement.host, port=store.port))
    body = _body(task.plan, sent)
    answer = wire.receive(channel)
    if answer is None:
        return 1  # the keeper is gone
    environment.meet(pb.MeetingPoint.FromString(answer.body))
    owner = os.getpid()
    limit = placement.thread_seconds if placement.HasField("thread_seconds") else None
    started = run_pb2.RankStarted(host=socket.gethostname(), pid=owner)
    wire.send(channel, pb.EVENT, _event(placement, started=started))
    reporting.context = reporting.RankContext(
        attempt=placement.attempt, session_conf={each.key: each.value for each in placement.session_conf}
    )
    reporting.sink = reporter = Reporter(placement, channel)

    def deliver(value: Any, notice: str = "") -> int:
        reporter.finish()
        if os.getpid() != owner:
            return 0  # a process that user code forked has come back from it too; it must not write into the channel
        if notice:
            wire.send(channel, pb.NOTICE, pb.RankNotice(rank=placement.rank, text=notice))
        for chunk in result(value, task):
            wire.send(channel, pb.RESULT, chunk)
        return 0

    def deliver_without(names: str) -> None:
        """The value of hours of training weighs more than the threads that it did not wait for."""
        notice = (
            f"returned and waited {limit:g} s (spark.sparkgap.threads.timeout) in vain for {names}: "
            "what they had still to write may be missing"
        )
        status = _told(task, channel, owner, lambda: deliver(value, notice))
        _close(channel, owner)
        exits.leave(status)

    try:
        value = body()
        if task.plan.WhichOneof("body") == "function":
            exits.await_others(limit, deliver_without)  # one may still write a checkpoint
    except BaseException:
        reporter.finish()
        raise
    return deliver(value)


def _close(channel: socket.socket, owner: int) -> None:
    """Also for the copies in processes that user code forked: the keeper has to hear that all has been said."""
    if os.getpid() == owner:
        with suppress(OSError):
            channel.shutdown(socket.SHUT_WR)
    channel.close()


def _use_session_files(python_path: list[str]) -> None:
    """As in Spark's Python workers: modules are imported from the session's folder, and `SparkFiles` finds the others there."""
    if not python_path:
        return
    from pyspark.core.files import SparkFiles

    sys.path[:0] = python_path
    SparkFiles._root_directory = python_path[0]
    SparkFiles._is_running_on_worker = True


def _body(plan: plan_pb2.TrainPlan, sent: Path) -> Callable[[], Any]:
    if plan.WhichOneof("body") == "script":
        return _script(plan.script, sent)
    try:
        sources.install(plan.function.modules, sent, plan.function.files)
        function, args, kwargs = codec.unpack(plan.function)
    except Exception as error:
        raise Unopenable(error) from error
    return lambda: function(*args, **kwargs)


def _script(script: plan_pb2.Script, sent: Path) -> Callable[[], None]:
    path = sent / Path(places.of_file(script.name)).name
    is_folder = not script.source and any(file.path == "__main__.py" for file in script.files)
    folder = path if is_folder else sent
    sources.install(script.modules, folder, script.files)
    if not is_folder:
        path.write_bytes(script.source)

    def run_script() -> None:
        program.use_arguments([str(path), *script.arguments])
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        try:
            program.run(path)
        except SystemExit as end:
            if exits.status_of(end):
                raise
        exits.finish()

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
    exits.say(exits.last_words(error, failure.traceback))
    try:
        wire.send(channel, pb.FAILURE, failure)
    except OSError:
        return 1  # the keeper is gone, and with it everybody who would want to know
    return failure.exit_code or 1


def _print_end(error: BaseException) -> int:
    exits.say(exits.last_words(error, "".join(traceback.format_exception(error))))
    return exits.status_of(error)


def _event(placement: pb.RankPlacement, **kind: Any) -> run_pb2.RunEvent:
    return run_pb2.RunEvent(attempt=placement.attempt, rank=placement.rank, time=time.time_ns() // 1000, **kind)
