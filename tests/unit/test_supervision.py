"""What becomes of a rank, in generated interleavings: a slow task, a full queue, a rank that ends before, during and after its value, a task or a
nursery that goes, frames in parts."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import run_pb2
from sparkgap_server import wire
from sparkgap_server.nursery import supervision
from sparkgap_server.nursery.supervision import TRANSITIONS, Event, Phase, Supervision

PID = 4711


class World(RuleBasedStateMachine):
    """A rank and a task as they may behave, around a Supervision whose queue is small."""

    @initialize(script=st.booleans())
    def begin(self, script: bool) -> None:
        self.supervision = Supervision(pb.RankPlacement(rank=3, attempt=2), b"none" if script else None)
        self.script = script
        self.now = 100.0
        self.unread = bytearray()  # what the rank has written into its channel, and nobody has read
        self.spoken: list[tuple[int, bytes]] = []  # whole frames of the rank
        self.printed = 0
        self.taken = bytearray()
        self.task_listens = self.nursery_lives = self.wanted = True
        self.alive = self.speaks = True
        self.told_all = False
        self.status: int | None = None
        self.stopped_at: float | None = None
        self.left_at: float | None = None
        self.signals: list[tuple[signal.Signals, float]] = []

    def after(self) -> None:
        for number in self.supervision.take_signals():
            assert self.alive, f"{number.name} to a process id that may be somebody else's"
            self.signals.append((number, self.now))

    # ---- The rank ----

    @precondition(lambda self: self.alive and self.speaks)
    @rule(size=st.integers(0, 3000), kind=st.sampled_from([pb.EVENT, pb.RESULT]))
    def rank_speaks(self, size: int, kind: int) -> None:
        self.spoken.append((kind, b"v" * size))
        self.unread += wire.encode(kind, b"v" * size)

    @precondition(lambda self: self.unread and self.supervision.reads_channel and not self.supervision.phase.is_over)
    @rule(part=st.integers(1, 4000))
    def keeper_reads(self, part: int) -> None:
        data = bytes(self.unread[:part])
        del self.unread[:part]
        self.supervision.rank_spoke(data)
        self.after()

    @precondition(lambda self: self.alive)
    @rule(lines=st.integers(1, 40), stream=st.sampled_from([1, 2]))
    def rank_prints(self, lines: int, stream: int) -> None:
        self.printed += lines
        self.supervision.rank_printed(stream, b"line\n" * lines)
        self.after()

    @precondition(lambda self: self.alive and self.speaks)
    @rule()
    def rank_says_no_more(self) -> None:
        self.speaks = False

    @precondition(
        lambda self: not self.speaks and not self.unread and not self.told_all and not self.supervision.phase.is_over
    )
    @rule()
    def keeper_hears_the_end(self) -> None:
        self.told_all = True
        self.left_at = self.now
        self.supervision.rank_said_all(self.now)
        self.after()

    @precondition(lambda self: self.alive)
    @rule(status=st.sampled_from([0, 0, 1, -11]))
    def rank_exits(self, status: int) -> None:
        killed = any(number is signal.SIGKILL for number, _ in self.signals)
        self.alive = self.speaks = False
        self.status = -9 if killed else status
        self.supervision.rank_exited(PID, self.status, self.now)
        assert self.supervision.phase is Phase.ENDED
        self.after()

    @precondition(lambda self: self.supervision.phase is Phase.ENDED)
    @rule()
    def keeper_drains(self) -> None:
        self.supervision.rank_spoke(bytes(self.unread))
        self.unread.clear()
        for stream in (1, 2):
            self.supervision.rank_printed(stream, b"")
        self.nursery_heard = self.nursery_lives
        self.supervision.rank_drained()
        self.after()

    # ---- The task ----

    @precondition(lambda self: self.task_listens and self.supervision.outgoing)
    @rule(part=st.integers(1, 5000))
    def task_takes(self, part: int) -> None:
        taken = bytes(self.supervision.outgoing.head[:part])
        self.taken += taken
        self.supervision.outgoing.sent(len(taken))
        self.after()

    @precondition(lambda self: self.wanted)
    @rule()
    def task_half_closes(self) -> None:
        self._unwanted()
        self.supervision.task_left(self.now)
        self.after()

    @precondition(lambda self: self.task_listens)
    @rule()
    def task_goes(self) -> None:
        self._unwanted()
        self.task_listens = False
        self.supervision.task_gone(self.now)
        self.after()

    @precondition(lambda self: self.nursery_lives)
    @rule()
    def nursery_goes(self) -> None:
        self._unwanted()
        self.nursery_lives = False
        self.supervision.nursery_gone(self.now)
        self.after()

    def _unwanted(self) -> None:
        self.wanted = False
        if self.stopped_at is None:
            self.stopped_at = self.now

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.supervision.clock(self.now)
        self.after()

    # ---- What holds ----

    @invariant()
    def signals_have_a_reason(self) -> None:
        if not hasattr(self, "signals"):
            return
        for number, when in self.signals:
            if number is signal.SIGTERM:
                assert self.stopped_at is not None
            else:
                unwanted = self.stopped_at is not None and when >= self.stopped_at + supervision.TERM_SECONDS
                overstayed = self.left_at is not None and when >= self.left_at + supervision.LEAVE_SECONDS
                assert unwanted or overstayed
        assert [number for number, _ in self.signals].count(signal.SIGKILL) <= 1

    @invariant()
    def a_rank_that_is_not_wanted_has_a_deadline(self) -> None:
        if hasattr(self, "signals") and not self.wanted and self.alive:
            assert self.supervision.deadline is not None or self.signals[-1][0] is signal.SIGKILL

    @invariant()
    def what_the_rank_said_arrives_whole_in_order_and_its_exit_last(self) -> None:
        if (
            not hasattr(self, "signals")
            or self.supervision.phase is not Phase.DONE
            or not self.task_listens
            or self.supervision.outgoing
        ):
            return
        frames = wire.FrameReader().feed(bytes(self.taken))
        exits = [frame for frame in frames if frame.kind == pb.EXIT]
        if self.nursery_heard:
            assert frames[-1].kind == pb.EXIT
            assert len(exits) == 1
            self._exit_is_true(pb.RankExit.FromString(frames[-1].body))
        else:
            assert not exits
        told = [event for event in map(_log_of, frames) if event is not None]
        ours = [line for log in told for line in log.lines if "was killed" in line]
        assert sum(len(log.lines) + log.dropped for log in told) - len(ours) == self.printed
        said = [
            (frame.kind, frame.body)
            for frame in frames
            if frame.kind in (pb.EVENT, pb.RESULT) and _log_of(frame) is None
        ]
        delivered = any(kind == pb.RESULT for kind, _ in self.spoken)
        of_script = [(pb.RESULT, b"none")] if self.script and self.status == 0 and not delivered else []
        assert said == [*self.spoken, *of_script]
        assert self.supervision.over

    def _exit_is_true(self, exit_: pb.RankExit) -> None:
        assert exit_.pid == PID
        delivered = any(kind == pb.RESULT for kind, _ in self.spoken)
        overstayed = self.supervision.phase is Phase.DONE and exit_.status == 0 and self.status == -9
        assert exit_.status == self.status or (overstayed and delivered)


def _log_of(frame: wire.Frame) -> run_pb2.LogLines | None:
    if frame.kind != pb.EVENT or frame.body.strip(b"v") == b"":
        return None
    return run_pb2.RunEvent.FromString(frame.body).log


@pytest.fixture(autouse=True)
def small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "OUTGOING_BYTES", 8000)


@pytest.mark.usefixtures("small_queue")
class TestWorld(World.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_each_phase_that_waits_ends_by_the_exit_of_the_process() -> None:
    for phase in Phase:
        if not phase.is_over:
            assert TRANSITIONS[phase, Event.EXITED] is Phase.ENDED


def test_nothing_leads_back_to_a_living_rank() -> None:
    order = list(Phase)
    for (phase, _), following in TRANSITIONS.items():
        assert order.index(following) > order.index(phase) or (phase, following) == (Phase.LEAVING, Phase.STOPPING)
