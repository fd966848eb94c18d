"""A Ctrl-C while a plan is sent or its run is followed: whenever it strikes, the server is told to end what this call has started."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from sparkgap import background, channel, submission
from sparkgap.errors import PlanError, RunCancelledError, RunNotFoundError
from sparkgap.progress import Console
from sparkgap.submission import Submission
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2

RUNNING = run_pb2.Reply(status=run_pb2.RunStatus(run_id="r", state=run_pb2.RUNNING))
CANCELLED = run_pb2.Reply(status=run_pb2.RunStatus(run_id="r", state=run_pb2.CANCELLED, complete=True))


def interrupt():
    signal.raise_signal(signal.SIGINT)  # Python handles it in the main thread


class Server:
    """Stands for the channel: says what it was asked to do, and does what the test wants meanwhile. Replies come from other threads, as in truth."""

    def __init__(self, monkeypatch, **actions):
        self.asked = []
        self._actions = actions
        monkeypatch.setattr(channel, "execute", self._execute)

    def _execute(self, session, **kind):
        yield from background.stream(lambda: self._answer(**kind))

    def _answer(self, **kind):
        ((name, message),) = kind.items()
        self.asked.append((name, message))
        action = self._actions.get(name)
        if action:
            action()
        yield CANCELLED if name == "cancel" else RUNNING

    @property
    def cancels(self):
        return [(message.run_id, message.submission) for name, message in self.asked if name == "cancel"]


@pytest.fixture
def a_submission():
    return Submission(None, pb.TrainPlan(run_id="r", name="train"))


def token(a_submission):
    return a_submission._request.submission


@pytest.fixture
def held():
    """Whoever waits for it is let go at the test's end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def test_each_call_has_a_name_of_its_own():
    plan = pb.TrainPlan(run_id="r")
    assert token(Submission(None, plan)) != token(Submission(None, plan))


def test_an_interrupt_before_the_answer_takes_the_call_back(monkeypatch, a_submission, held):
    def interrupted():
        interrupt()
        held.wait(30)

    server = Server(monkeypatch, submit=interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        a_submission.sent()
    assert str(caught.value) == ""
    assert server.cancels == [("r", token(a_submission))]


def test_an_interrupt_while_the_run_is_followed_cancels_it_whoever_has_started_it(monkeypatch, a_submission, held):
    def interrupted():
        interrupt()
        held.wait(30)

    server = Server(monkeypatch, follow=interrupted)
    with pytest.raises(KeyboardInterrupt), Console() as console:
        a_submission.followed(console)
    assert server.cancels == [("r", "")]


def test_a_second_interrupt_ends_the_wait_and_not_the_cancel(monkeypatch, a_submission, held):
    def interrupted():
        interrupt()
        held.wait(30)

    server = Server(monkeypatch, submit=interrupted, cancel=interrupted)
    with pytest.raises(
        KeyboardInterrupt,
        match=r"has not said whether run r has ended: sparkgap\.attach\(spark, 'r'\)\.cancel\(\) ends it",
    ):
        a_submission.sent()
    held.set()
    assert a_submission._taking_back.wait()
    assert a_submission._told
    assert set(server.cancels) == {
        ("r", token(a_submission))
    }  # twice where the second struck before the first had a thread


def test_a_server_that_is_gone_leaves_a_text_and_its_error(monkeypatch, a_submission, held):
    def interrupted():
        interrupt()
        held.wait(30)

    def gone():
        raise ConnectionError("no server")

    Server(monkeypatch, submit=interrupted, cancel=gone)
    with pytest.raises(KeyboardInterrupt, match="the server has not said whether run r has ended") as caught:
        a_submission.sent()
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_server_that_does_not_answer_is_waited_for_with_a_limit(monkeypatch, a_submission, held):
    def interrupted():
        interrupt()
        held.wait(30)

    monkeypatch.setattr(submission, "_CANCEL_SECONDS", 0.2)
    Server(monkeypatch, submit=interrupted, cancel=lambda: held.wait(30))
    with pytest.raises(KeyboardInterrupt, match="the server has not said whether run r has ended"):
        a_submission.sent()


def test_an_older_server_that_knows_no_such_run_has_answered(monkeypatch, a_submission, held):
    def interrupted():
        interrupt()
        held.wait(30)

    def unknown():
        raise RunNotFoundError("there is no run r of this user")

    Server(monkeypatch, submit=interrupted, cancel=unknown)
    with pytest.raises(KeyboardInterrupt) as caught:
        a_submission.sent()
    assert str(caught.value) == ""


def test_an_error_of_the_plan_is_raised_as_it_is_and_cancels_nothing(monkeypatch, a_submission):
    def refused():
        raise PlanError("no such thing")

    server = Server(monkeypatch, submit=refused)
    with pytest.raises(PlanError, match="no such thing"):
        a_submission.sent()
    assert server.cancels == []


def test_an_error_of_the_connection_takes_the_call_back_without_a_wait(monkeypatch, a_submission, held):
    def lost():
        raise ConnectionError("reset by peer")

    server = Server(monkeypatch, submit=lost, cancel=lambda: held.wait(30))
    with pytest.raises(ConnectionError, match="reset by peer"):
        a_submission.sent()
    held.set()
    assert a_submission._taking_back.wait()
    assert server.cancels == [("r", token(a_submission))]


def test_an_interrupt_through_spark_before_the_answer_is_a_cancelled_run(monkeypatch, a_submission):
    class Interrupted(Exception):
        def getCondition(self):
            return "OPERATION_CANCELED"

    def interrupted():
        raise Interrupted("interruptAll")

    server = Server(monkeypatch, submit=interrupted)
    with pytest.raises(
        RunCancelledError, match="run r was cancelled before it was there, by an interrupt through Spark: interruptAll"
    ):
        a_submission.sent()
    assert server.cancels == [("r", token(a_submission))]


def interrupt_inside_of_sent(signum, frame):
    """Python's own handler, but for interrupts that strike the test itself."""
    while frame is not None:
        if frame.f_code is Submission.sent.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back


@pytest.fixture
def struck_inside_only():
    before = signal.signal(signal.SIGINT, interrupt_inside_of_sent)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("round_", range(40))
def test_interrupts_in_quick_succession_at_any_moment_leave_no_call_behind(
    monkeypatch, a_submission, held, struck_inside_only, round_
):
    """As `timeout` sends them, to the process and to its group. The first may strike before anything is sent: then nothing is."""
    server = Server(monkeypatch, submit=lambda: held.wait(0.2))

    def strike():
        for pause in (0.0005 * (round_ % 8), *(0.00002 * round_,) * 3):
            time.sleep(pause)  # spreads the interrupts over the call, whatever they strike
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        a_submission.sent()
    except KeyboardInterrupt:
        assert a_submission._taking_back.wait()
        assert ("r", token(a_submission)) in server.cancels
    else:
        assert server.cancels == []
    thread.join(30)
