"""The files of one rank and of its task, for keeper.py: reads them into the decisions of supervision.py, and does what those ask for."""

from __future__ import annotations

import math
import os
import shutil
import socket
import time
from dataclasses import dataclass
from functools import partial

from sparkgap_server import wire
from sparkgap_server.nursery.loop import READ, WRITE, Loop
from sparkgap_server.nursery.rank_process import RankProcess
from sparkgap_server.nursery.supervision import Supervision
from sparkgap_server.train import leftovers, rank

_READ_BYTES = 1 << 18


@dataclass(frozen=True, eq=False)
class Task:
    """The task that waits for a rank: its connection, and what has been read from there."""

    connection: socket.socket
    reader: wire.FrameReader


class KeptRank:
    """One rank. Its callbacks tell what has come and put it into `touched`; `decide` is called for those before the next turn of the loop."""

    def __init__(
        self, loop: Loop, touched: set[KeptRank], request: rank.RankTask, process: RankProcess, task: Task
    ) -> None:
        is_script = request.plan.WhichOneof("body") == "script"
        self.supervision = Supervision(request.placement, next(rank.result(None, request)) if is_script else None)
        self._loop = loop
        self._touched = touched
        self._placement = request.placement
        self._private = request.private
        self._connection = task.connection
        self._reader = task.reader
        self._process = process
        self._pipes = {1: process.out, 2: process.err}
        self._task_speaks = True
        self._speaks = True
        self._on_task, self._on_channel = self._task_ready, self._channel_ready
        loop.watch(process.pidfd, READ, self._exited)
        for stream, pipe in self._pipes.items():
            loop.watch(pipe, READ, partial(self._printed, stream))
        touched.add(self)

    @property
    def pid(self) -> int:
        """Of the rank's process."""
        return self._process.pid

    @property
    def deadline(self) -> float:
        """When `decide` is due though nothing has come; infinite where nothing is waited for."""
        return math.inf if self.supervision.deadline is None else self.supervision.deadline

    def decide(self, now: float) -> None:
        """Do what is due: signals, frames, and who is listened to from here on."""
        self.supervision.clock(now)
        for number in self.supervision.take_signals():
            self._process.signal(number)
        self._to_rank()
        self._to_task(now)
        task_events = (READ if self._task_speaks else 0) | (WRITE if self.supervision.outgoing else 0)
        self._loop.watch(self._connection, task_events, self._on_task)
        channel_events = READ if self._speaks and self.supervision.reads_channel else 0
        channel_events |= WRITE if self.supervision.for_rank else 0
        self._loop.watch(self._process.channel, channel_events, self._on_channel)

    def drain(self) -> None:
        """Take what the rank, which has exited, has left in its pipes, its channel and its folder, and remove that, before its exit is told."""
        for stream in list(self._pipes):
            while stream in self._pipes and self._read_pipe(stream):
                pass
        while self._speaks and self._read_channel():
            pass
        self._speaks = False
        for pipe in self._pipes.values():
            self._loop.forget(pipe)
        last = [*leftovers.frames(self._placement, self._private)]
        shutil.rmtree(self._private, ignore_errors=True)
        self.supervision.rank_drained(last)

    def close(self) -> None:
        """Let go of all files."""
        self._loop.forget(self._connection)
        self._loop.forget(self._process.channel)
        self._connection.close()
        self._process.channel.close()
        for pipe in self._pipes.values():
            os.close(pipe)

    # ---- The task's side ----

    def _task_ready(self, events: int) -> None:
        self._touched.add(self)
        if not events & READ:
            return  # it takes more, which `decide` gives it
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.supervision.task_spoke(self._reader.feed(data))
        else:
            self._task_speaks = False
            self.supervision.task_left(time.monotonic())

    def _to_task(self, now: float) -> None:
        outgoing = self.supervision.outgoing
        try:
            while outgoing:
                outgoing.sent(self._connection.send(outgoing.head))
        except BlockingIOError:
            return
        except OSError:
            self._task_speaks = False
            self.supervision.task_gone(now)

    # ---- The rank's side ----

    def _channel_ready(self, events: int) -> None:
        self._touched.add(self)
        if not events & READ:
            return
        for stream in list(self._pipes):  # what it has printed before comes before
            self._read_pipe(stream)
        self._read_channel()

    def _read_channel(self) -> bool:
        """Whether there may be more."""
        try:
            data = self._process.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self.supervision.rank_spoke(data)
        else:
            self._speaks = False
            self.supervision.rank_said_all(time.monotonic())
        return bool(data)

    def _to_rank(self) -> None:
        waiting = self.supervision.for_rank
        try:
            while waiting:
                del waiting[: self._process.channel.send(waiting)]
        except BlockingIOError:
            return
        except OSError:
            waiting.clear()  # it has ended, which its pidfd will say

    def _printed(self, stream: int, _: int) -> None:
        self._touched.add(self)
        self._read_pipe(stream)

    def _read_pipe(self, stream: int) -> bool:
        """Whether there may be more."""
        pipe = self._pipes[stream]
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        self.supervision.rank_printed(stream, data)
        if not data:
            self._loop.forget(pipe)
            os.close(pipe)
            del self._pipes[stream]
        return bool(data)

    def _exited(self, _: int) -> None:
        self._touched.add(self)
        self._loop.forget(self._process.pidfd)
        os.close(self._process.pidfd)
        self.supervision.rank_exited(self.pid, self._process.wait(), time.monotonic())
