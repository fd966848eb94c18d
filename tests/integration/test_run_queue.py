"""Several runs of several users on one small cluster: who waits for what, who goes first, and who is refused; and gangs that are started again."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import sparkgap
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import ResourceError, RunCancelledError, TorchDistributor, TrainingError, training
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(90)

SLOTS = 3
PATIENCE_SECONDS = 3


@pytest.fixture(scope="module")
def server():
    """Three slots, so that two gangs of two are one too many."""
    conf = {"spark.sparkgap.queue.patience": f"{PATIENCE_SECONDS}s", "spark.sparkgap.queue.max": "4"}
    with LocalServer(f"local[{SLOTS}]", conf=conf) as running:
        yield running


@contextlib.contextmanager
def session_of(server, user):
    session = SparkSession.builder.remote(f"{server.url};user_id={user}").create()
    try:
        yield session
    finally:
        session.stop()


@pytest.fixture
def ann(server):
    with session_of(server, "ann") as session:
        yield session


@pytest.fixture
def bob(server):
    with session_of(server, "bob") as session:
        yield session


@pytest.fixture(autouse=True)
def nobody_left(server, eventually):
    """A run that a failed test has left would take the slots of the next one."""
    yield
    for user in ("ann", "bob"):
        with session_of(server, user) as session:
            alive = sparkgap.runs(session).query("ended.isnull()")["id"]
            for run_id in alive:
                run = sparkgap.attach(session, run_id)
                run.cancel("left over")
                run.wait(10)


def gang(session, ranks, **options):
    """A distributor of so many ranks, each in a task of its own."""
    return TorchDistributor(ranks, local_mode=False, use_gpu=False, spark=session, **options)


def await_file(path, seconds=60):
    """For ranks: wait until the test lets them go on."""
    deadline = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear within {seconds} s")
        time.sleep(0.01)


def speak_and_wait(door):
    print("ready", flush=True)
    await_file(door)
    return time.monotonic()


def now():
    return time.monotonic()


@pytest.fixture
def holding(tmp_path):
    """`holding(session, ranks)` has a run hold so many slots until its door is touched; gives the run and the door."""

    def hold(session, ranks):
        door = tmp_path / f"door-{time.monotonic_ns()}"
        run = gang(session, ranks).submit(speak_and_wait, door)
        next(run.logs(follow=True))
        return run, door

    return hold


# ---- The queue ----


def test_runs_wait_in_their_order_and_say_for_what(ann, holding):
    holder, door = holding(ann, 3)
    second, third = (gang(ann, 2).submit(now) for _ in range(2))
    assert (second.status, second.queue_position) == ("QUEUED", 1)
    assert (third.status, third.queue_position) == ("QUEUED", 2)
    assert third.waiting_for == "2 task slots at the same time; the cluster has 3, of which 1 other run takes 3"
    listed = sparkgap.runs(ann).set_index("id").loc[[second.id, third.id, holder.id]]
    assert listed["queue_position"].tolist() == [1, 2, 0]
    assert listed["waiting_for"].tolist() == [second.waiting_for, third.waiting_for, ""]
    door.touch()
    assert holder.result(30) < second.result(30) < third.result(30)
    assert (third.queue_position, third.waiting_for) == (0, "")


def test_run_says_why_nothing_happens_yet(ann, holding, capsys):
    _, door = holding(ann, 3)
    threading.Timer(2.5, door.touch).start()
    gang(ann, 1, name="patient").run(now)
    assert (
        "[sparkgap] patient waits at position 1 of the queue; it needs 1 task slot; the cluster has 3, of which 1 other run takes 3\n"
        in capsys.readouterr().err
    )


def test_a_run_that_is_not_to_wait_is_refused_while_its_slots_are_taken(ann, bob, holding):
    _, door = holding(bob, 2)
    with pytest.raises(
        ResourceError,
        match=r"the run needs 2 task slots at the same time, and the cluster has 3, of which 1 other run takes 2\. It was not to wait",
    ):
        gang(ann, 2, wait=False).submit(now)
    assert sparkgap.runs(ann).query("name == 'now' and ended.isnull()").empty
    assert gang(ann, 1, wait=False).run(now) > 0
    door.touch()


def test_a_small_run_passes_a_large_one_that_does_not_fit_yet_but_not_for_ever(ann, holding, eventually):
    holder, door = holding(ann, 2)
    large = gang(ann, 3).submit(now)
    assert large.queue_position == 1
    assert gang(ann, 1).run(now) > 0  # the slot that is free is of no use to the large one
    time.sleep(PATIENCE_SECONDS)  # what is tested is that it has waited this long
    late = gang(ann, 1).submit(now)
    assert not late.wait(1.5)
    assert late.queue_position == 2
    door.touch()
    assert holder.result(30) < large.result(30) < late.result(30)


def test_users_take_turns(ann, bob, holding):
    _, door = holding(ann, 2)
    hers = [gang(ann, 2).submit(now) for _ in range(2)]
    his = gang(bob, 2).submit(now)
    # Ann has two slots already, so Bob comes first, although he has come last. Neither sees the other's runs.
    assert [run.queue_position for run in (his, *hers)] == [1, 2, 3]
    assert set(sparkgap.runs(bob)["id"]).isdisjoint(run.id for run in hers)
    door.touch()
    assert his.result(30) < min(run.result(30) for run in hers)


def test_a_gang_lets_sparks_other_work_go_on_while_it_waits_for_it(ann, bob, tmp_path, eventually):
    started, door = str(tmp_path / "started"), str(tmp_path / "door")

    def rows(batches):
        Path(started).touch()
        await_file(door)
        yield from batches

    thread = threading.Thread(target=bob.range(0, 1, 1, 1).mapInPandas(rows, "id long").collect)
    thread.start()
    await_file(started)
    waiting = gang(ann, 3).submit(now)
    words = "3 task slots at the same time; the cluster has 3, of which other work of Spark takes 1"
    eventually(lambda: waiting.waiting_for == words, 20, "the gang waits for Spark's other work")
    assert (waiting.status, waiting.queue_position) == ("QUEUED", 0)
    with pytest.raises(ResourceError, match="of which 1 other run takes 3 and other work of Spark takes 1"):
        gang(ann, 1, wait=False).submit(now)
    assert bob.range(100).selectExpr("sum(id)").collect()[0][0] == 4950  # a job that has come after the gang
    Path(door).touch()
    thread.join(30)
    assert waiting.result(30) > 0


def test_only_so_many_may_wait(ann, holding):
    _, door = holding(ann, 3)
    waiting = [gang(ann, 1).submit(now) for _ in range(4)]
    with pytest.raises(
        ResourceError, match=r"4 runs wait for their slots already, spark\.sparkgap\.queue\.max allows no more"
    ):
        gang(ann, 1).submit(now)
    for run in waiting:
        run.cancel()
        assert run.wait(2), "a run in the queue is cancelled at once"
        assert run.status == "CANCELLED"
    door.touch()


def test_slots_are_free_only_when_the_ranks_that_had_them_are_gone(ann):
    def stubborn():
        import os
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(60)

    def still_there(pids):
        return [pid for pid in pids if psutil.pid_exists(pid)]

    first = gang(ann, 3).submit(stubborn)
    lines = first.logs(follow=True)
    pids = [int(next(lines).text) for _ in range(3)]
    second = gang(ann, 3).submit(still_there, pids)
    first.cancel()
    assert second.result(30) == []


def test_fifty_submits_of_one_run_at_once_start_it_once(ann, tmp_path):
    def main(file):
        with open(file, "a") as out:
            out.write("started\n")
        return "value"

    starts = tmp_path / "starts"
    distributor = gang(ann, 1, run_id=f"fifty-{time.time_ns()}")
    with ThreadPoolExecutor(50) as pool:
        runs = list(pool.map(lambda _: distributor.submit(main, starts), range(50)))
    assert {run.id for run in runs} == {distributor._run_id}
    assert {run.result(30) for run in runs} == {"value"}
    assert starts.read_text() == "started\n"


# ---- Gangs that are started again ----


def fail_until(attempt):
    """`training.attempt()` counts from 0."""
    print(f"attempt {training.attempt()}", flush=True)
    if training.attempt() < attempt:
        raise ValueError(f"no luck at attempt {training.attempt()}")
    return training.attempt()


def test_a_failed_gang_is_started_again_as_a_whole(ann, capfd):
    run = gang(ann, 2, max_failures=3).submit(fail_until, 1)
    assert run.result(60) == 1
    assert (run.status, run.attempts) == ("SUCCEEDED", 2)
    lines = {(line.attempt, line.rank, line.text) for line in run.logs() if line.text.startswith("attempt")}
    assert lines == {(attempt, rank, f"attempt {attempt}") for attempt in (0, 1) for rank in (0, 1)}
    assert gang(ann, 1, max_failures=1).run(fail_until, 1) == 1
    assert (
        "[sparkgap] attempt 1 failed and another one starts: rank 0 on 127.0.0.1: ValueError: no luck at attempt 0\n"
        in capfd.readouterr().err
    )


def test_between_attempts_a_run_is_retrying_and_can_be_cancelled(ann, eventually):
    run = gang(ann, 1, max_failures=1000).submit(fail_until, 1000)
    eventually(lambda: run.status == "RETRYING", 20, "the run is RETRYING")
    run.cancel("enough")
    assert run.wait(5)
    with pytest.raises(RunCancelledError, match="enough"):
        run.result()


def test_the_last_failure_is_the_one_that_counts(ann):
    run = gang(ann, 1, max_failures=1).submit(fail_until, 5)
    error = run.exception(60)
    assert isinstance(error, TrainingError)
    assert str(error.__cause__) == "no luck at attempt 1"
    assert run.attempts == 2
    assert len(error.failures) == 1


def test_a_gang_whose_nursery_was_killed_is_started_again(ann, server, tmp_path):
    def main(file):
        import os
        import signal

        if training.attempt() == 0:
            os.kill(psutil.Process().parent().ppid(), signal.SIGKILL)
            time.sleep(60)
        return training.attempt()

    assert gang(ann, 2, max_failures=1).run(main, tmp_path) == 1


@pytest.mark.parametrize("number", [-1, 1.5, True, "2", 10**7])
def test_a_number_of_failures_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match="max_failures has to be an integer from 0 to 1000000"):
        TorchDistributor(1, max_failures=number)


# ---- The session, as it was ----


def test_a_run_has_the_settings_of_its_session_as_of_the_submit(ann, holding):
    _, door = holding(ann, 3)
    ann.conf.set("spark.example.bucket", "first")
    run = gang(ann, 1).submit(training.session_conf)
    ann.conf.set("spark.example.bucket", "second")
    door.touch()
    found = run.result(30)
    assert found["spark.example.bucket"] == "first"
    assert not [key for key in found if key.startswith("spark.driver") or "token" in key.lower()]
    assert training.session_conf() == {}


def test_settings_without_end_are_refused(ann):
    ann.conf.set("spark.example.long", "x" * (1 << 20))
    with pytest.raises(ValueError, match=r"the session's own settings have \d+ characters, 1048576 may travel"):
        gang(ann, 1).submit(now)


# ---- What a rank gets ----


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"gpus": 0.5}, r"resources\['gpus'\] has to be a whole number of at least 1 for each rank, got 0\.5"),
        ({"cpus": 0}, r"resources\['cpus'\] has to be a whole number"),
        ({"cpus": True}, r"resources\['cpus'\] has to be a whole number"),
        ({"tpus": 1}, "resources has tpus: only 'cpus' and 'gpus'"),
        ([4], "resources has to be a mapping"),
    ],
)
def test_resources_that_nobody_has_are_refused(resources, words):
    with pytest.raises(ValueError, match=words):
        TorchDistributor(1, resources=resources)


def test_gpus_without_use_gpu_are_refused():
    with pytest.raises(ValueError, match="resources asks for gpus, and use_gpu is False"):
        TorchDistributor(1, use_gpu=False, resources={"gpus": 1})


def test_a_local_master_cuts_all_tasks_alike_and_says_so(ann):
    cpus = functools.partial(gang, ann, 1)
    assert cpus(resources={"cpus": 1}).run(now) > 0
    with pytest.raises(
        ResourceError,
        match=r"a task of 1 rank needs spark\.task\.cpus=2, the server has spark\.task\.cpus=1, and with master local\[3\] Spark cuts",
    ):
        cpus(resources={"cpus": 2}).run(now)
