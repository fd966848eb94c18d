"""Supervises one rank: forked by the nursery for each barrier task's request, the only writer to that task's connection.

It passes the rank's frames and output lines on, and its end. When the task's side of the connection closes, or the nursery dies, the rank ends.
The rank's lines are read here and not inside the rank, so the last words of a crash arrive, and no kill depends on a thread of the rank.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2, run_pb2

from sparkgap_server import processes, wire
from sparkgap_server.nursery.lines import LineCollector
from sparkgap_server.train import leftovers, rank
from sparkgap_server.train.failure import describe

_PLAN_SECONDS = 60.0
_TERM_SECONDS = 2.0  # between SIGTERM and SIGKILL
_LEAVE_SECONDS = 10.0  # for exit handlers, once the rank has delivered its value
_OUTGOING_BYTES = 8 << 20
_LAST_LINES = 20
_KEPT_LINES = 100  # a traceback may follow them


def keep(connection: socket.socket, lifeline: int, private: Path) -> int:
    """Fork the rank that the connection asks for and stay until it, all its descendants and its folder `private` are gone."""
    connection.settimeout(_PLAN_SECONDS)
    placement, plan = wire.receive(connection), wire.receive(connection)
    if placement is None or plan is None:
        return 0
    if (placement.kind, plan.kind) != (pb.PLACEMENT, pb.TRAIN_PLAN):
        raise wire.BrokenFrame(f"expected a placement and a plan, got frames of kind {placement.kind} and {plan.kind}")
    placed = pb.RankPlacement.FromString(placement.body)
    try:
        private.mkdir(mode=0o700)
    except OSError as problem:  # a full disk, as a rule
        wire.send(connection, pb.FAILURE, describe(problem, placed))
        wire.send(connection, pb.EXIT, pb.RankExit(status=1, pid=os.getpid()))
        return 0
    task = rank.RankTask(placed, plan_pb2.TrainPlan.FromString(plan.body), private)
    processes.adopt_orphans()
    try:
        _Keeper(connection, lifeline, task).run()
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return 0


class _Keeper:
    def __init__(self, connection: socket.socket, lifeline: int, task: rank.RankTask) -> None:
        self._connection = connection
        self._task = task
        self._placement = task.placement
        self._selector = selectors.DefaultSelector()
        self._from_task = wire.FrameReader()
        self._from_rank = wire.FrameReader()
        self._outgoing: deque[memoryview] = deque()
        self._outgoing_bytes = 0
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._kill_at: float | None = None
        self._status: int | None = None
        self._task_gone = False
        self._nursery_gone = False
        self._delivered = False
        self._overstayed = False

        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        out, err = os.pipe(), os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _become_rank(task, theirs, parent, out[1], err[1])
        theirs.close()
        os.close(out[1])
        os.close(err[1])
        self._pidfd = os.pidfd_open(self._pid)
        self._collectors = {
            out[0]: LineCollector(run_pb2.LogLines.STDOUT),
            err[0]: LineCollector(run_pb2.LogLines.STDERR),
        }
        connection.setblocking(False)
        self._channel.setblocking(False)
        self._watch(connection, self._task_spoke)
        self._watch(self._channel, self._rank_spoke)
        self._watch(self._pidfd, self._rank_ended)
        self._watch(lifeline, lambda: self._nursery_ended(lifeline))
        for descriptor in self._collectors:
            os.set_blocking(descriptor, False)
            self._watch(descriptor, lambda descriptor=descriptor: self._rank_printed(descriptor))  # type: ignore[misc]

    def _watch(self, file: int | socket.socket, callback: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, callback)

    def run(self) -> None:
        while self._status is None:
            for key, mask in self._selector.select(self._patience()):
                if mask & selectors.EVENT_WRITE:
                    self._flush()
                if mask & selectors.EVENT_READ:
                    key.data()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._overstayed = self._delivered and not self._task_gone
                self._signal(signal.SIGKILL)
        if processes.has_children():
            processes.kill_descendants()
        for descriptor in list(self._collectors):
            self._drain(descriptor)
        self._drain_channel()
        if self._overstayed:
            self._tell(
                run_pb2.LogLines.STDERR,
                [f"did not end within {_LEAVE_SECONDS:g} s after it had returned, and was killed"],
            )
            self._status = 0
        if self._status == 0 and not self._delivered and self._task.plan.WhichOneof("body") == "script":
            for chunk in rank.result(
                None, self._task
            ):  # it has left by os._exit(0), which is success as of any other program
                self._queue(wire.encode(pb.RESULT, chunk))
        for frame in self._farewell():
            self._queue(frame)
        self._connection.settimeout(_PLAN_SECONDS if not self._task_gone else _TERM_SECONDS)
        self._task_gone = False  # one that has said its last word may still listen
        while self._outgoing and not self._task_gone:
            self._flush()

    def _farewell(self) -> Iterator[bytes]:
        yield from leftovers.frames(self._placement, self._task.private)
        if not self._nursery_gone:  # without this frame the task knows that the rank did not end by itself
            exit_ = pb.RankExit(status=self._status, pid=self._pid, last_lines=list(self._last_lines)[-_LAST_LINES:])
            yield wire.encode(pb.EXIT, exit_)

    def _patience(self) -> float | None:
        return None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())

    # ---- the task's side ----

    def _task_spoke(self) -> None:
        try:
            data = self._connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._task_gone = True
            self._terminate(self._connection)
        for frame in self._from_task.feed(data):
            try:
                self._channel.sendall(wire.encode(frame.kind, frame.body))
            except OSError:
                return  # the rank has ended, which its pidfd will say

    def _nursery_ended(self, lifeline: int) -> None:
        self._nursery_gone = True
        self._terminate(lifeline)

    def _terminate(self, source: int | socket.socket) -> None:
        self._selector.unregister(source)
        if self._kill_at is None:
            self._signal(signal.SIGTERM)
        self._kill_at = time.monotonic() + _TERM_SECONDS

    def _queue(self, frame: bytes) -> None:
        self._outgoing.append(memoryview(frame))
        self._outgoing_bytes += len(frame)
        if not self._task_gone and len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                sent = self._connection.send(self._outgoing[0])
                self._outgoing_bytes -= sent
                rest = self._outgoing[0][sent:]
                if rest:
                    self._outgoing[0] = rest
                else:
                    self._outgoing.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._task_gone = True
        self._adjust()

    def _adjust(self) -> None:
        """Wait for the task to read, and let the rank wait with its value meanwhile, but never with its output."""
        waiting = bool(self._outgoing) and not self._task_gone
        if self._connection in self._selector.get_map():
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
            self._selector.modify(self._connection, events, self._task_spoke)
        full = self._full()
        watched = self._channel.fileno() >= 0 and self._channel in self._selector.get_map()
        if full and watched:
            self._selector.unregister(self._channel)
        elif not full and not watched and self._channel.fileno() >= 0 and self._status is None:
            self._watch(self._channel, self._rank_spoke)

    def _full(self) -> bool:
        return self._outgoing_bytes > _OUTGOING_BYTES and not self._task_gone

    # ---- the rank's side ----

    def _rank_spoke(self) -> None:
        try:
            data = self._channel.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(self._channel)
            self._channel.close()
            self._kill_at = self._kill_at or time.monotonic() + _LEAVE_SECONDS
            return
        self._relay(data)

    def _relay(self, data: bytes) -> None:
        for frame in self._from_rank.feed(data):
            self._delivered = self._delivered or frame.kind == pb.RESULT
            body = self._with_last_lines(frame.body) if frame.kind == pb.FAILURE else frame.body
            self._queue(wire.encode(frame.kind, body))

    def _with_last_lines(self, body: bytes) -> bytes:
        """The rank's failure with what it printed before; its traceback, printed too, it holds already."""
        for descriptor in list(self._collectors):
            self._rank_printed(descriptor)
        failure = run_pb2.RankFailure.FromString(body)
        known = set(failure.traceback.splitlines())
        failure.last_lines.extend([line for line in self._last_lines if line not in known][-_LAST_LINES:])
        return failure.SerializeToString()

    def _rank_printed(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        self._print(self._collectors[descriptor], data)
        if not data:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            del self._collectors[descriptor]

    def _print(self, collector: LineCollector, data: bytes) -> None:
        lines = collector.feed(data)
        self._last_lines.extend(lines[-_KEPT_LINES:])
        if self._full():
            collector.dropped += len(lines)
            lines = []
        if lines or (collector.dropped and not data):  # at the end of the stream no line comes that could say it
            self._tell(collector.stream, lines, collector.dropped)
            collector.dropped = 0

    def _tell(self, stream: run_pb2.LogLines.Stream, lines: list[str], dropped: int = 0) -> None:
        event = run_pb2.RunEvent(
            attempt=self._placement.attempt,
            rank=self._placement.rank,
            time=time.time_ns() // 1000,
            log=run_pb2.LogLines(stream=stream, lines=lines, dropped=dropped),
        )
        self._queue(wire.encode(pb.EVENT, event))

    def _rank_ended(self) -> None:
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        self._status = os.waitstatus_to_exitcode(status)

    def _drain(self, descriptor: int) -> None:
        while descriptor in self._collectors:
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                data = b""
            self._print(self._collectors[descriptor], data)
            if not data:
                del self._collectors[descriptor]

    def _drain_channel(self) -> None:
        while self._channel.fileno() >= 0:
            try:
                data = self._channel.recv(1 << 18)
            except OSError:
                return
            if not data:
                return
            self._relay(data)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            return


def _become_rank(task: rank.RankTask, channel: socket.socket, parent: int, out: int, err: int) -> None:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        processes.begin_child(parent, [channel.fileno()])
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        status = rank.run(task, channel)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(status)
