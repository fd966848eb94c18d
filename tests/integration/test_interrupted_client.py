"""Ctrl-C at the client, at any moment of `run` and `submit`: afterwards no run is alive that nobody owns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import PlanError, RunNotFoundError, attach, channel, runs
from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(300)

ALIVE = {"QUEUED", "STARTING", "RUNNING", "RETRYING"}
LAST_MILLIS = 80

CLIENT = """
import signal, sys, time
from pathlib import Path
from pyspark.sql.connect.session import SparkSession
from sparkgap import TorchDistributor

def main(door):
    while not Path(door).exists():
        time.sleep(0.05)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
url, how, door = sys.argv[1:]
how, ends, _ = how.partition(" and end")
how, tells, _ = how.partition(" and tell")
if tells:
    from sparkgap import background

    class Telling(background.Errand):
        def __init__(self, *given):
            print("taking back", flush=True)
            super().__init__(*given)

    def telling(start, given=background.stream):
        print("sending", flush=True)
        return given(start)

    background.Errand, background.stream = Telling, telling
spark = SparkSession.builder.remote(url).create()
distributor = TorchDistributor(1, use_gpu=False, spark=spark)
distributor.run(int, 7)  # Python loses an interrupt that strikes in a lock of the import system, so all is imported here
while sys.stdin.readline() == "go\\n":
    owned = None
    try:
        print("calling", flush=True)
        owned = getattr(distributor, how)(main, door)
        time.sleep(60)
    except KeyboardInterrupt as interrupt:
        if ends:
            raise
        if owned is not None:
            owned.cancel()
        print(f"interrupted {interrupt}", flush=True)
"""


@pytest.fixture(scope="module")
def server():
    with LocalServer("local[4]") as running:
        yield running


@pytest.fixture
def session(server):
    opened = SparkSession.builder.remote(server.url).create()
    yield opened
    opened.stop()


@contextmanager
def client_of(server, how, door):
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.url, how, str(door)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    try:
        yield client
    finally:
        client.kill()
        client.communicate()


def call(client):
    client.stdin.write("go\n")
    assert client.stdout.readline() == "calling\n"


def alive(session):
    return {run_id for run_id, state in states(session).items() if state in ALIVE}


def states(session):
    found = runs(session)
    return dict(zip(found["id"], found["state"], strict=True))


@pytest.mark.parametrize(("how", "rounds"), [("run", 30), ("submit", 15)])
def test_an_interrupt_at_any_moment_leaves_no_run(server, session, tmp_path, eventually, how, rounds):
    """In a client that goes on: its requests do not end with it."""
    with client_of(server, how, tmp_path / "door") as client:
        for number in range(rounds):
            call(client)
            time.sleep(LAST_MILLIS / 1000 * number / rounds)  # when the interrupt strikes is what is tried here
            client.send_signal(signal.SIGINT)
            assert client.stdout.readline() == "interrupted \n"
        eventually(lambda: not alive(session), 30, "no run is alive")


@pytest.mark.parametrize("millis", [0, 10, 25, 50, 80])
def test_an_interrupt_that_ends_the_client_leaves_no_run(server, session, tmp_path, eventually, millis):
    with client_of(server, "run and end", tmp_path / "door") as client:
        call(client)
        time.sleep(millis / 1000)
        client.send_signal(signal.SIGINT)
        assert client.wait(60) == -signal.SIGINT
    eventually(lambda: not alive(session), 30, "no run is alive")


def test_interrupts_of_a_client_whose_server_does_not_answer_reach_it_later(server, session, tmp_path, eventually):
    def until(words):
        return next(line for line in client.stdout if line.startswith(words))

    jvm = psutil.Process(server.pid)
    with client_of(server, "run and tell", tmp_path / "door") as client:
        client.stdin.write("go\n")
        until("calling")
        before = states(session)
        jvm.suspend()
        try:
            until("sending")
            client.send_signal(signal.SIGINT)
            until("taking back")
            client.send_signal(signal.SIGINT)
            said = until("interrupted")
        finally:
            jvm.resume()
        assert said.startswith("interrupted the server has not said whether run ")
        eventually(lambda: not alive(session), 30, "no run is alive")
        late = {run_id: state for run_id, state in states(session).items() if run_id not in before}
        assert list(late.values()) in ([], ["CANCELLED"])


# ---- What arrives in the wrong order ----


def plan(run_id, door):
    function = codec.pack((touch, (str(door),), {}), "the function")
    return pb.TrainPlan(run_id=run_id, name="touch", num_processes=1, local_mode=True, function=function)


def touch(path):
    Path(path).touch()
    return "ran"


def take_back(session, run_id, submission):
    cancel = pb.CancelRun(run_id=run_id, reason="changed my mind", submission=submission)
    (reply,) = channel.execute(session, cancel=cancel)
    return run_pb2.RunState.Name(reply.status.state)


def submit(session, run_id, submission, door):
    for _ in channel.execute(session, submit=pb.SubmitRun(plan=plan(run_id, door), submission=submission)):
        pass
    run = attach(session, run_id)
    assert run.wait(60)
    return run


def test_a_call_that_is_taken_back_before_it_arrives_never_runs(session, tmp_path):
    door = tmp_path / "door"
    assert take_back(session, "early", "a") == "CANCELLED"
    with pytest.raises(RunNotFoundError):
        attach(session, "early")
    run = submit(session, "early", "a", door)
    assert run.status == "CANCELLED"
    assert "run early was cancelled: changed my mind" in str(run.exception())
    assert not door.exists()


def test_another_call_with_the_same_id_runs(session, tmp_path):
    take_back(session, "again", "a")
    assert submit(session, "again", "b", tmp_path / "door").result() == "ran"


def test_a_run_of_another_call_or_user_goes_on_and_one_of_this_call_ends(server, session, tmp_path):
    def wait_for(door):
        while not Path(door).exists():
            time.sleep(0.05)

    waiting = plan("mine", tmp_path / "unused")
    waiting.function.CopyFrom(codec.pack((wait_for, (str(tmp_path / "door"),), {}), "the function"))
    for _ in channel.execute(session, submit=pb.SubmitRun(plan=waiting, submission="a")):
        pass
    other = SparkSession.builder.remote(f"{server.url};user_id=another").create()
    take_back(session, "mine", "b")
    take_back(other, "mine", "a")
    other.stop()
    run = attach(session, "mine")
    assert run.status in ALIVE
    assert not run.wait(1)
    assert take_back(session, "mine", "a") in {*ALIVE, "CANCELLED"}
    assert run.wait(30)
    assert run.status == "CANCELLED"


def test_a_cancel_that_names_no_call_knows_only_runs_that_are_there(session):
    with pytest.raises(RunNotFoundError, match="there is no run nobodys of this user"):
        list(channel.execute(session, cancel=pb.CancelRun(run_id="nobodys")))


@pytest.mark.parametrize(("run_id", "submission"), [("ok", "a" * 65), ("not/ok", "a"), ("a" * 129, "a")])
def test_what_the_server_would_have_to_remember_is_bounded(session, run_id, submission):
    with pytest.raises(PlanError, match="are allowed"):
        take_back(session, run_id, submission)
