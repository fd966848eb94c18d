"""What becomes of one rank, decided without any input or output: keeper.py tells it what has happened and does what it asks for.

The rank's way is `TRANSITIONS`. Beside it stands the task, which reads what is outgoing or is gone.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto

from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap_server import wire
from sparkgap_server.nursery.lines import LineCollector

TERM_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""

LEAVE_SECONDS = 10.0
"""For exit handlers, once the rank has said all."""

OUTGOING_BYTES = 8 << 20
"""Beyond this the rank waits with its value, and its lines are dropped and counted."""

_LAST_LINES = 20
_KEPT_LINES = 100  # a traceback may follow them


class Phase(Enum):
    """Where a rank stands."""

    RUNNING = auto()  # user code may run
    LEAVING = auto()  # it has said all: exit handlers have some time
    STOPPING = auto()  # nobody waits for it any more: it had SIGTERM
    KILLED = auto()  # it had SIGKILL
    OVERSTAYED = auto()  # it had SIGKILL after it had said all, so its value counts
    ENDED = auto()  # its exit status is known; its pipes may hold last words
    DONE = auto()  # its exit has been told, or is on its way

    @property
    def is_over(self) -> bool:
        """Its process has been waited for."""
        return self in (Phase.ENDED, Phase.DONE)


class Event(Enum):
    """What can happen to a rank."""

    SAID_ALL = auto()  # it has closed its channel
    NOT_WANTED = auto()  # the task or the nursery is gone
    TIME_OVER = auto()  # the phase's time
    EXITED = auto()
    DRAINED = auto()  # its pipes are empty


#: What is not here changes nothing.
TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.RUNNING, Event.SAID_ALL): Phase.LEAVING,
    (Phase.RUNNING, Event.NOT_WANTED): Phase.STOPPING,
    (Phase.LEAVING, Event.NOT_WANTED): Phase.STOPPING,
    (Phase.LEAVING, Event.TIME_OVER): Phase.OVERSTAYED,
    (Phase.STOPPING, Event.TIME_OVER): Phase.KILLED,
    **{
        (phase, Event.EXITED): Phase.ENDED
        for phase in (Phase.RUNNING, Phase.LEAVING, Phase.STOPPING, Phase.KILLED, Phase.OVERSTAYED)
    },
    (Phase.ENDED, Event.DRAINED): Phase.DONE,
}

_SECONDS = {Phase.LEAVING: LEAVE_SECONDS, Phase.STOPPING: TERM_SECONDS}
_SIGNALS = {Phase.STOPPING: signal.SIGTERM, Phase.KILLED: signal.SIGKILL, Phase.OVERSTAYED: signal.SIGKILL}


class Supervision:
    """One rank and the task that waits for it.

    Parameters
    ----------
    placement
        Of the rank.
    value_of_script
        Of a script, what tells its success: one that exits with 0 and has not told it has left by ``os._exit(0)``, as any other program may.
    """

    def __init__(self, placement: pb.RankPlacement, value_of_script: bytes | None) -> None:
        self.phase = Phase.RUNNING
        self.outgoing = _Outgoing()
        self.for_rank = bytearray()
        self.deadline: float | None = None
        self._placement = placement
        self._value_of_script = value_of_script
        self._from_rank = wire.FrameReader()
        self._out = LineCollector(run_pb2.LogLines.STDOUT)
        self._err = LineCollector(run_pb2.LogLines.STDERR)
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._delivered = False
        self._overstayed = False
        self._nursery_gone = False
        self._status: tuple[int, int] | None = None
        self._signals: list[signal.Signals] = []

    # ---- What the keeper has to do ----

    @property
    def reads_channel(self) -> bool:
        """Whether the rank may go on to speak: it waits with its value, but never with its output, for a task that does not read."""
        return not self.outgoing.full

    @property
    def over(self) -> bool:
        """Nothing is left to be done."""
        return self.phase is Phase.DONE and (not self.outgoing or self._nursery_gone)

    def take_signals(self) -> list[signal.Signals]:
        """Signals for the rank's process group that are due now."""
        signals, self._signals = self._signals, []
        return signals

    # ---- What has happened ----

    def task_spoke(self, frames: Iterable[wire.Frame]) -> None:
        """Frames for the rank."""
        for frame in frames:
            self.for_rank += wire.encode(frame.kind, frame.body)

    def task_left(self, now: float) -> None:
        """Its side of the connection is closed; it may still read."""
        self._happened(Event.NOT_WANTED, now)

    def task_gone(self, now: float) -> None:
        """It will not read any more."""
        self.outgoing.discard()
        self._happened(Event.NOT_WANTED, now)

    def nursery_gone(self, now: float) -> None:
        """The rank does not end by itself then, so its exit is not told for one."""
        self._nursery_gone = True
        self._happened(Event.NOT_WANTED, now)

    def rank_spoke(self, data: bytes) -> None:
        """Bytes of its channel: frames, whole and in parts."""
        for frame in self._from_rank.feed(data):
            self._delivered = self._delivered or frame.kind == pb.RESULT
            body = self._with_last_lines(frame.body) if frame.kind == pb.FAILURE else frame.body
            self.outgoing.add(wire.encode(frame.kind, body))

    def rank_said_all(self, now: float) -> None:
        """It has closed its channel."""
        self._happened(Event.SAID_ALL, now)

    def rank_printed(self, stream: int, data: bytes) -> None:
        """Bytes of standard output, 1, or standard error, 2; none at their end."""
        collector = self._out if stream == 1 else self._err
        lines = collector.feed(data)
        self._last_lines.extend(lines[-_KEPT_LINES:])
        if self.outgoing.full:
            collector.dropped += len(lines)
            lines = []
        if lines or (collector.dropped and not data):  # at the end of the stream no line comes that could say it
            self._tell(collector.stream, lines, collector.dropped)
            collector.dropped = 0

    def rank_exited(self, pid: int, status: int, now: float) -> None:
        """As of `waitstatus_to_exitcode`. The keeper empties its pipes next."""
        self._overstayed = self.phase is Phase.OVERSTAYED and self._delivered
        self._status = (pid, status)
        self._happened(Event.EXITED, now)

    def rank_drained(self, last: Iterable[bytes] = ()) -> None:
        """Nothing comes any more, so these last frames about it are added, and its exit."""
        if self.phase is not Phase.ENDED or self._status is None:
            raise RuntimeError(f"a rank in phase {self.phase.name} has not exited")
        pid, status = self._status
        if self._overstayed:
            self.say(f"did not end within {LEAVE_SECONDS:g} s after it had returned, and was killed")
            status = 0
        if status == 0 and not self._delivered and self._value_of_script is not None:
            self.outgoing.add(wire.encode(pb.RESULT, self._value_of_script))
        for frame in last:
            self.outgoing.add(frame)
        if not self._nursery_gone:
            exit_ = pb.RankExit(status=status, pid=pid, last_lines=list(self._last_lines)[-_LAST_LINES:])
            self.outgoing.add(wire.encode(pb.EXIT, exit_))
        self._happened(Event.DRAINED, 0.0)

    def clock(self, now: float) -> None:
        """The time, whenever the keeper wakes up."""
        if self.deadline is not None and now >= self.deadline:
            self._happened(Event.TIME_OVER, now)

    def say(self, line: str) -> None:
        """A line of ours among those of the rank's standard error."""
        self._tell(run_pb2.LogLines.STDERR, [line])

    # ---- Inside ----

    def _happened(self, event: Event, now: float) -> None:
        following = TRANSITIONS.get((self.phase, event))
        if following is None:
            return
        self.phase = following
        seconds = _SECONDS.get(following)
        self.deadline = None if seconds is None else now + seconds
        if following in _SIGNALS:
            self._signals.append(_SIGNALS[following])

    def _with_last_lines(self, body: bytes) -> bytes:
        """The rank's failure with what it printed before; its traceback, printed too, it holds already."""
        failure = run_pb2.RankFailure.FromString(body)
        known = set(failure.traceback.splitlines())
        failure.last_lines.extend([line for line in self._last_lines if line not in known][-_LAST_LINES:])
        return failure.SerializeToString()

    def _tell(self, stream: run_pb2.LogLines.Stream, lines: list[str], dropped: int = 0) -> None:
        event = run_pb2.RunEvent(
            attempt=self._placement.attempt,
            rank=self._placement.rank,
            time=time.time_ns() // 1000,
            log=run_pb2.LogLines(stream=stream, lines=lines, dropped=dropped),
        )
        self.outgoing.add(wire.encode(pb.EVENT, event))


class _Outgoing:
    """Frames that the task has not taken yet, in their order; none where nobody will."""

    def __init__(self) -> None:
        self._frames: deque[memoryview] = deque()
        self._bytes = 0
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def full(self) -> bool:
        return self._bytes > OUTGOING_BYTES

    @property
    def head(self) -> memoryview:
        """What goes out next."""
        return self._frames[0]

    def add(self, frame: bytes) -> None:
        if not self._closed:
            self._frames.append(memoryview(frame))
            self._bytes += len(frame)

    def sent(self, count: int) -> None:
        """So many bytes of the head have gone out."""
        self._bytes -= count
        rest = self._frames.popleft()[count:]
        if rest:
            self._frames.appendleft(rest)

    def discard(self) -> None:
        self._closed = True
        self._frames.clear()
        self._bytes = 0
