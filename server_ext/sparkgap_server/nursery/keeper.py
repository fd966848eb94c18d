"""Supervises the ranks of one run on one executor: forked by the nursery for the first of them, it is handed the connections of the others.

It forks each rank, passes the rank's frames and output lines on to its task, and tells its end. When the task's side of a connection closes, its rank
ends; when the nursery dies, all do. Lines are read here and not inside the rank, so the last words of a crash arrive, and no kill depends on a
thread of the rank. What becomes of a rank is decided in supervision.py.
"""

from __future__ import annotations

import math
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2

from sparkgap_server import processes, wire
from sparkgap_server.nursery.kept_rank import KeptRank, Task
from sparkgap_server.nursery.loop import READ, Loop
from sparkgap_server.nursery.rank_process import RankProcess
from sparkgap_server.nursery.spare import Spare, refuse
from sparkgap_server.nursery.supervision import Phase
from sparkgap_server.train import rank
from sparkgap_server.train.failure import describe

_TASK_SECONDS = 60.0
_FAILURE_SECONDS = 5.0
_READ_BYTES = 1 << 18

MAX_WORDS = 64 << 10


@dataclass(frozen=True)
class KeeperSpec:
    """What the nursery tells a keeper: where ranks get private folders ``rank-<keeper's process id>-<rank>``, and how many files each may open."""

    folder: Path
    descriptors: int


def keep(connection: socket.socket, door: socket.socket, lifeline: int, spec: KeeperSpec) -> int:
    """Stay until all ranks, their descendants and their folders are gone.

    Parameters
    ----------
    connection
        Of the first rank's task.
    door
        Brings the connections of further ranks. An exception of ours leaves through it, as text.
    lifeline
        A pipe whose end is the nursery's.
    """
    try:
        Keeper(door, lifeline, spec).run(connection)
    except Exception:
        with suppress(OSError):
            door.send(traceback.format_exc().encode()[-MAX_WORDS:], socket.MSG_DONTWAIT)
        return 1
    return 0


@dataclass(eq=False)
class _Arrival:
    """A connection whose rank has not been forked yet."""

    connection: socket.socket
    deadline: float = math.inf  # for the next that the task has to send
    reader: wire.FrameReader = field(default_factory=wire.FrameReader)
    placement: pb.RankPlacement | None = None
    early: list[wire.Frame] = field(default_factory=list)  # for the rank, which is not there yet

    def expect(self) -> None:
        """Something, in time."""
        self.deadline = time.monotonic() + _TASK_SECONDS


class Keeper:
    """One loop over all connections, channels and pipes."""

    def __init__(self, door: socket.socket, lifeline: int, spec: KeeperSpec) -> None:
        self._door = door
        self._lifeline = lifeline
        self._spec = spec
        self._loop = Loop()
        self._arrivals: list[_Arrival] = []
        self._plan: plan_pb2.TrainPlan | None = None
        self._asked: _Arrival | None = None  # who sends the plan, for all
        self._ranks: list[KeptRank] = []
        self._touched: set[KeptRank] = set()
        self._spare = Spare()

    def run(self, first: socket.socket) -> None:
        """Serve the first connection and all that come through the door, until nothing is left to be looked after."""
        self._door.setblocking(False)
        self._loop.watch(self._door, READ, self._knocked)
        self._loop.watch(self._lifeline, READ, lambda _: self._nursery_ended())
        self._arrive(first)
        while self._arrivals or self._ranks or self._more_at_the_door():
            self._loop.turn(self._patience())
            for arrival in [each for each in self._arrivals if each.deadline <= time.monotonic()]:
                self._dismiss(arrival, TimeoutError(f"its task has sent nothing for {_TASK_SECONDS:g} s"))
            self._begin_next()
            self._look_after()

    def _patience(self) -> float | None:
        if self._touched or (self._plan is not None and self._placed()):
            return 0.0
        deadlines = [arrival.deadline for arrival in self._arrivals] + [kept.deadline for kept in self._ranks]
        soonest = min(deadlines, default=math.inf)
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    # ---- Connections ----

    def _knocked(self, _: int) -> None:
        self._at_the_door()

    def _at_the_door(self) -> bool:
        """Whether there may be more."""
        shortage = self._spare.shortage()
        if shortage is None:
            return self._receive(self._arrive)
        with self._spare.lent():  # what cannot get a descriptor is gone once it is received
            return self._receive(lambda connection: _turn_away(connection, shortage))

    def _receive(self, welcome: Callable[[socket.socket], None]) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._door, 1, 1)
        except BlockingIOError:
            return False
        except OSError:
            data, descriptors = b"", []
        if descriptors:
            welcome(socket.socket(fileno=descriptors[0]))
        elif not data:
            self._loop.forget(self._door)
        return bool(data)

    def _more_at_the_door(self) -> bool:
        """The last look before the end: whom the nursery has sent is served, and from here on it can send nobody and forks another keeper."""
        self._door.shutdown(socket.SHUT_RD)
        while self._at_the_door():
            pass
        return bool(self._arrivals)

    def _nursery_ended(self) -> None:
        self._loop.forget(self._lifeline)
        for arrival in list(self._arrivals):
            self._dismiss(arrival)
        for kept in self._ranks:
            kept.supervision.nursery_gone(time.monotonic())
        self._touched.update(self._ranks)

    def _arrive(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        arrival = _Arrival(connection)
        arrival.expect()
        self._arrivals.append(arrival)
        self._loop.watch(connection, READ, lambda _: self._arrival_spoke(arrival))

    def _arrival_spoke(self, arrival: _Arrival) -> None:
        try:
            data = arrival.connection.recv(_READ_BYTES)
            if not data:
                self._dismiss(arrival)
            for frame in arrival.reader.feed(data):
                self._take(arrival, frame)
            if arrival.placement is None or arrival is self._asked:
                arrival.expect()
            else:  # it waits for us now
                arrival.deadline = math.inf
        except BlockingIOError:
            return
        except (OSError, DecodeError, wire.BrokenFrame) as problem:
            self._dismiss(arrival, problem)

    def _take(self, arrival: _Arrival, frame: wire.Frame) -> None:
        if arrival.placement is None:
            arrival.placement = pb.RankPlacement.FromString(_body(frame, pb.PLACEMENT))
            self._ask_for_plan()
        elif arrival is self._asked:
            self._asked = None
            self._plan = plan_pb2.TrainPlan.FromString(_body(frame, pb.TRAIN_PLAN))
        else:
            arrival.early.append(frame)

    def _ask_for_plan(self) -> None:
        """One arrival sends it, and the next one where that has gone."""
        placed = self._placed()
        if self._plan is None and self._asked is None and placed:
            self._asked = placed[0][1]
            self._asked.expect()
            try:
                wire.send(self._asked.connection, pb.PLAN_WANTED)
            except OSError as problem:
                self._dismiss(self._asked, problem)

    def _placed(self) -> list[tuple[pb.RankPlacement, _Arrival]]:
        return [(each.placement, each) for each in self._arrivals if each.placement is not None]

    def _dismiss(self, arrival: _Arrival, problem: Exception | None = None) -> None:
        self._leave(arrival)
        if problem is not None and arrival.placement is not None:
            _say_failure(arrival.connection, problem, arrival.placement)
        arrival.connection.close()
        if arrival is self._asked:
            self._asked = None
            self._ask_for_plan()

    def _leave(self, arrival: _Arrival) -> None:
        self._loop.forget(arrival.connection)
        if arrival in self._arrivals:
            self._arrivals.remove(arrival)

    # ---- Ranks ----

    def _begin_next(self) -> None:
        """One in each turn, rank 0 first: the others are forked while it gets ready to be met."""
        placed = self._placed()
        if self._plan is not None and placed:
            placement, arrival = min(placed, key=lambda each: each[0].rank)
            self._begin(arrival, placement, self._plan)

    def _begin(self, arrival: _Arrival, placement: pb.RankPlacement, plan: plan_pb2.TrainPlan) -> None:
        self._leave(arrival)
        task = rank.RankTask(placement, plan, self._spec.folder / f"rank-{os.getpid()}-{placement.rank}")
        try:
            task.private.mkdir(mode=0o700)
            process = RankProcess.fork(task, self._spec.descriptors)
        except OSError as problem:  # a full disk, no process ids, no descriptors
            _say_failure(arrival.connection, problem, placement)
            arrival.connection.close()
            with suppress(OSError):
                task.private.rmdir()
            return
        kept = KeptRank(self._loop, self._touched, task, process, Task(arrival.connection, arrival.reader))
        kept.supervision.task_spoke(arrival.early)
        self._ranks.append(kept)

    def _look_after(self) -> None:
        """Ranks about which something has been heard, or whose time is over."""
        now = time.monotonic()
        touched = {kept for kept in self._ranks if kept.deadline <= now} | self._touched
        self._touched.clear()
        for kept in touched:
            kept.decide(now)
        exited = [kept for kept in touched if kept.supervision.phase is Phase.ENDED]
        if exited:
            # A rank adopts its own orphans while it lives, so whatever else this process is parent of was left by those that have exited.
            processes.kill_descendants(spare=[kept.pid for kept in self._ranks if not kept.supervision.phase.is_over])
        for kept in exited:
            kept.drain()
            kept.decide(now)
        for kept in touched:
            if kept.supervision.over:
                kept.close()
                self._ranks.remove(kept)


def _turn_away(connection: socket.socket, problem: OSError) -> None:
    with connection:
        refuse(connection, problem)


def _body(frame: wire.Frame, kind: int) -> bytes:
    if frame.kind != kind:
        raise wire.BrokenFrame(f"expected a frame of kind {kind}, got one of kind {frame.kind}")
    return frame.body


def _say_failure(connection: socket.socket, problem: Exception, placement: pb.RankPlacement) -> None:
    connection.settimeout(_FAILURE_SECONDS)
    with suppress(OSError):
        wire.send(connection, pb.FAILURE, describe(problem, placement))
        wire.send(connection, pb.EXIT, pb.RankExit(status=1, pid=os.getpid()))
