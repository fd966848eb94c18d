"""What can go wrong while ranks run: crashes, hangs, cancels, vanished clients, dead processes of our own, too much output.

Every time the error says what happened, and no process is left.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import RunCancelledError, TorchDistributor, TrainingError, attach
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(90)

GONE_SECONDS = 5


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark)


@pytest.fixture(autouse=True)
def nothing_left(sparkgap_server, eventually):
    """After every test here, the server has only the processes that it had before, and its nursery no folder of a rank."""
    jvm = psutil.Process(sparkgap_server.pid)
    eventually(lambda: nursery_of(jvm), 30, "the nursery runs")
    before = {*jvm.children(recursive=True)}
    yield
    eventually(
        lambda: (
            not [
                each
                for each in jvm.children(recursive=True)
                if each not in before and runs(each) and not is_nursery(each)
            ]
        ),
        GONE_SECONDS,
        "the server has no further process",
    )
    folders = (sparkgap_server.log.parent / "tmp").glob
    eventually(lambda: not [*folders("sparkgap-*/rank-*")], GONE_SECONDS, "no rank has left its folder")
    assert [*folders("sparkgap-*/nursery")], "this is where the nursery's folder is"


def nursery_of(jvm):
    """The nursery of a server in local mode, whose JVM is driver and executor; None while there is none."""
    return next((each for each in jvm.children() if is_nursery(each)), None)


def is_nursery(process):
    try:
        return "sparkgap_server.nursery" in process.cmdline() and process.parent().name() == "java"
    except (psutil.NoSuchProcess, AttributeError):
        return False


def process_with(pid):
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def runs(process):
    """A zombie that nobody has waited for yet has ended all the same."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def gone(eventually):
    """`gone(processes)` fails unless all of them, processes or ids, have ended within 5 s."""

    def check(processes):
        assert processes
        known = [each if isinstance(each, psutil.Process) else process_with(each) for each in processes]
        eventually(lambda: not [each for each in known if each and runs(each)], GONE_SECONDS, f"{processes} are gone")

    return check


# ---- What ranks do ----


def tell_pids_and(then):
    """The body of a rank that says which processes it has, and goes on with `then`."""

    def main(*args):
        print("pid", os.getpid(), flush=True)
        return then(*args)

    return main


def sleep_for_ever():
    time.sleep(1000)


def await_file(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear within {seconds} s")
        time.sleep(0.01)


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("pid", os.getpid(), flush=True)
    time.sleep(1000)


def hold_the_gil():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # any other way to take the signal would interrupt the sleep
    print("pid", os.getpid(), flush=True)
    ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the GIL, so no thread of the rank can do anything


def match_for_ever():
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    print("pid", os.getpid(), flush=True)
    re.match(r"(a*)*b", "a" * 60)


def hang_in_a_collective():
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    print("pid", os.getpid(), flush=True)
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))
    time.sleep(1000)


def have_children():
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    orphan = "import subprocess; print(subprocess.Popen(['setsid', 'sleep', '1000'], stdout=subprocess.DEVNULL).pid)"
    grandchild = subprocess.check_output([sys.executable, "-c", orphan], timeout=30)
    print("pid", os.getpid(), flush=True)
    print("pid", int(grandchild), flush=True)
    time.sleep(1000)


def processes_of(run, lines):
    """The processes that the next `lines` lines name, and everything below them."""
    named = []
    for line in run.logs(follow=True):
        named.append(psutil.Process(int(line.text.removeprefix("pid "))))
        if len(named) == lines:
            break
    return list({*named, *(each for process in named for each in process.children(recursive=True))})


# ---- Failures of user code ----


class LostBatch(Exception):
    def __init__(self, number):
        super().__init__(f"batch {number} is lost")
        self.number = number


def test_the_failing_ranks_own_exception_is_the_cause(cpu):
    def load(number):
        raise LostBatch(number)

    def main():
        if os.environ["RANK"] == "1":
            load(42)

    with pytest.raises(TrainingError) as caught:
        cpu(2).run(main)
    error = caught.value
    assert re.search(r"^rank 1 of 2 of .*main failed on \S+: .*LostBatch: batch 42 is lost$", str(error))
    assert error.rank == 1
    assert type(error.__cause__).__name__ == "LostBatch"
    assert error.__cause__.number == 42
    assert "in load" in error.traceback
    assert "raise LostBatch(number)" in error.traceback or "LostBatch: batch 42 is lost" in error.traceback
    assert "sparkgap_server" not in error.traceback
    assert error.traceback.strip() in str(error.__cause__.__cause__)


def test_a_cause_that_cannot_be_pickled_comes_as_its_text(cpu):
    def main():
        class Holder(Exception):
            def __reduce__(self):
                raise TypeError("never")

        raise Holder("holds a lock")

    with pytest.raises(TrainingError, match="holds a lock") as caught:
        cpu(1).run(main)
    assert "Holder: holds a lock" in str(caught.value.__cause__)


def test_a_large_exception_comes_as_its_text(cpu):
    def main():
        raise ValueError("x" * 100_000_000)

    with pytest.raises(TrainingError, match=r"ValueError: xxx") as caught:
        cpu(1).run(main)
    assert len(str(caught.value)) < 100_000


def test_an_exception_whose_text_cannot_be_had_is_told_all_the_same(cpu):
    def main():
        class Mute(Exception):
            def __str__(self):
                raise RuntimeError("no words")

        raise Mute()

    with pytest.raises(TrainingError, match="Mute: <its text cannot be had: RuntimeError>"):
        cpu(1).run(main)


@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("local_mode", [True, False])
def test_the_rank_that_raises_is_blamed_while_others_hang_in_a_collective(cpu, local_mode, attempt):
    def main():
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        dist.barrier()
        if dist.get_rank() == 1:
            raise ValueError("rank 1 has had enough")
        dist.all_reduce(torch.ones(1))

    began = time.monotonic()
    with pytest.raises(TrainingError, match="rank 1 has had enough") as caught:
        cpu(2, local_mode).run(main)
    assert time.monotonic() - began < 20
    assert caught.value.rank == 1
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("local_mode", [True, False])
def test_the_rank_that_crashes_is_blamed_while_others_hang_in_a_collective(cpu, local_mode):
    def main():
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        dist.barrier()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))

    with pytest.raises(TrainingError) as caught:
        cpu(2, local_mode).run(main)
    assert caught.value.rank == 1
    assert caught.value.signal == signal.SIGKILL


def test_a_failure_ends_the_other_ranks(cpu, gone, tmp_path):
    def main(door):
        if os.environ["RANK"] == "1":
            await_file(door)
            raise ValueError("enough")
        ignore_sigterm()

    door = tmp_path / "door"
    run = cpu(2).submit(main, door)
    left = processes_of(run, 1)
    door.touch()
    with pytest.raises(TrainingError, match=r"rank 1 of 2 .*ValueError: enough"):
        run.result(timeout=30)
    gone(left)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_rank_that_is_killed_is_named_with_its_signal_and_last_lines(cpu, number):
    def main():
        print("the last words", flush=True)
        os.kill(os.getpid(), number)
        time.sleep(1000)

    with pytest.raises(TrainingError) as caught:
        cpu(1).run(main)
    error = caught.value
    assert re.search(rf"rank 0 of 1 of .* failed on \S+: ended by signal {int(number)}\b", str(error))
    assert (error.rank, error.signal, error.exit_code) == (0, number, 0)
    assert "Its last lines were:\n  the last words" in str(error)
    assert error.__cause__ is None


def test_a_segmentation_fault_is_named(cpu):
    with pytest.raises(TrainingError, match="ended by signal 11") as caught:
        cpu(1).run(lambda: ctypes.string_at(0))
    assert caught.value.signal == signal.SIGSEGV


@pytest.mark.parametrize("status", [0, 3])
def test_a_rank_that_leaves_by_os_exit_is_named_with_its_status(cpu, status):
    def main():
        print("leaving", flush=True)
        os._exit(status)

    with pytest.raises(TrainingError, match=f"exited with status {status} before it returned a value") as caught:
        cpu(1).run(main)
    assert caught.value.exit_code == status
    assert "leaving" in str(caught.value)


def test_a_function_that_calls_sys_exit_fails_with_its_status(cpu):
    with pytest.raises(TrainingError, match="SystemExit: exit status 4") as caught:
        cpu(1).run(lambda: sys.exit(4))
    assert caught.value.exit_code == 4
    assert not isinstance(caught.value.__cause__, SystemExit)


def test_a_value_that_cannot_be_pickled_is_a_failure_of_rank_0(cpu):
    def main():
        import threading

        return {"lock": threading.Lock()}

    with pytest.raises(TrainingError, match=r"the value that rank 0 returned cannot be pickled: .*\['lock'\]"):
        cpu(1).run(main)


def test_a_rank_that_fails_while_others_have_returned_fails_the_run(cpu, tmp_path):
    def main(door):
        if os.environ["RANK"] == "1":
            await_file(door)
            raise ValueError("late")
        Path(door).touch()
        return "early"

    with pytest.raises(TrainingError, match="late"):
        cpu(2).run(main, tmp_path / "door")


# ---- Cancel ----


BODIES = {
    "sleeps": (tell_pids_and(sleep_for_ever), 1),
    "ignores SIGTERM": (ignore_sigterm, 1),
    "holds the GIL in C": (hold_the_gil, 1),
    "matches a catastrophic pattern": (match_for_ever, 1),
    "has children": (have_children, 2),
}


@pytest.mark.parametrize("body", BODIES)
def test_after_a_cancel_no_process_is_left_of_a_rank_that(cpu, gone, body):
    main, lines = BODIES[body]
    run = cpu(1).submit(main)
    processes = processes_of(run, lines)
    run.cancel()
    gone(processes)
    with pytest.raises(RunCancelledError, match="cancelled by its user"):
        run.result(timeout=10)


@pytest.mark.parametrize("local_mode", [True, False])
def test_a_cancel_ends_ranks_in_a_collective(cpu, gone, local_mode):
    run = cpu(2, local_mode).submit(hang_in_a_collective)
    processes = processes_of(run, 2)
    run.cancel()
    gone(processes)
    assert run.exception(timeout=10).args == (f"run {run.id} was cancelled: cancelled by its user",)


def test_after_a_failure_no_child_process_of_the_rank_is_left(cpu, gone, tmp_path):
    def main(door):
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print("pid", os.getpid(), flush=True)
        await_file(door)
        raise ValueError("with children")

    door = tmp_path / "door"
    run = cpu(1).submit(main, door)
    processes = processes_of(run, 1)
    assert len(processes) == 3
    door.touch()
    assert isinstance(run.exception(timeout=30), TrainingError)
    gone(processes)


def test_after_success_no_child_process_of_the_rank_is_left(cpu, gone):
    def main():
        return os.getpid(), subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    gone(cpu(1).run(main))


def test_cancelling_twice_and_after_the_end_changes_nothing(cpu):
    run = cpu(1).submit(tell_pids_and(sleep_for_ever))
    processes_of(run, 1)
    run.cancel("first")
    run.cancel("second")
    assert run.wait(timeout=10)
    run.cancel("third")
    assert run.status == "CANCELLED"
    with pytest.raises(RunCancelledError, match="first"):
        run.result()

    ended = cpu(1).submit(lambda: "done")
    assert ended.result(timeout=30) == "done"
    ended.cancel()
    assert ended.status == "SUCCEEDED"
    assert ended.result() == "done"


def test_a_run_can_be_cancelled_at_any_moment_of_its_start(cpu, gone):
    for milliseconds in (0, 5, 10, 20, 40, 80, 160):
        run = cpu(2, local_mode=False).submit(sleep_for_ever)
        time.sleep(milliseconds / 1000)  # the moment is what is tested; any will do
        run.cancel()
        assert run.wait(timeout=10), f"still {run.status} 10 s after a cancel {milliseconds} ms after the submit"
        assert run.status == "CANCELLED"


def test_a_run_that_waits_for_slots_can_be_cancelled(cpu, tmp_path):
    door = tmp_path / "door"
    holder = cpu(4, local_mode=False).submit(tell_pids_and(await_file), door)
    processes_of(holder, 1)
    waiting = cpu(2, local_mode=False).submit(lambda: "never")
    waiting.cancel()
    assert waiting.wait(timeout=20)
    assert waiting.status == "CANCELLED"
    door.touch()
    assert holder.result(timeout=30) is None


# ---- Clients that go away ----


CLIENT = """
import os, sys, time
from pyspark.sql.connect.session import SparkSession
from sparkgap import TorchDistributor

def await_file(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return "went on alone"

def main(door):
    print("pid", os.getpid(), flush=True)
    return await_file(door)

spark = SparkSession.builder.remote(os.environ["SPARKGAP_TEST_URL"]).create()
try:
    TorchDistributor(1, use_gpu=False, spark=spark, run_id=sys.argv[1]).run(main, sys.argv[2])
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
    os._exit(130)
"""


@pytest.fixture
def client(sparkgap_server, tmp_path):
    """A client process that waits in `run`; gives it, the run's id, and the file that lets the rank go on."""
    run_id, door = f"client-{time.time_ns()}", tmp_path / "door"
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, run_id, str(door)],
        env={**os.environ, "SPARKGAP_TEST_URL": sparkgap_server.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process, run_id, door
        process.kill()


def test_ctrl_c_in_the_client_cancels_the_run(spark, client, gone):
    process, run_id, _ = client
    rank = psutil.Process(int(process.stdout.readline().removeprefix("[rank 0] pid ")))
    process.send_signal(signal.SIGINT)
    gone([rank])
    assert process.wait(timeout=15) == 130
    assert process.stdout.read() == "KeyboardInterrupt\n"
    with pytest.raises(RunCancelledError, match=r"interrupted at the client \(Ctrl-C\)"):
        attach(spark, run_id).result(timeout=10)


def test_a_run_goes_on_to_its_end_when_its_client_is_killed(spark, client):
    process, run_id, door = client
    assert process.stdout.readline().startswith("[rank 0] pid ")
    process.kill()
    process.wait(timeout=10)
    run = attach(spark, run_id)
    assert run.status == "RUNNING"
    door.touch()
    assert run.result(timeout=30) == "went on alone"


# ---- Processes of ours that die ----


def test_a_killed_nursery_is_a_clear_error_and_the_next_run_works(cpu, gone, sparkgap_server):
    nursery = nursery_of(psutil.Process(sparkgap_server.pid))
    run = cpu(2).submit(tell_pids_and(sleep_for_ever))
    processes = processes_of(run, 2)
    processes += nursery.children(recursive=True)
    nursery.kill()
    gone([nursery, *processes])
    with pytest.raises(TrainingError, match="the process that watched over it died: the nursery of its executor"):
        run.result(timeout=10)
    assert cpu(2).run(lambda: "born again") == "born again"


def test_a_killed_nursery_ends_ranks_that_ignore_sigterm_and_their_children(cpu, gone, sparkgap_server):
    def main():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        have_children()

    nursery = nursery_of(psutil.Process(sparkgap_server.pid))
    run = cpu(1).submit(main)
    processes = processes_of(run, 2)
    nursery.kill()
    gone([nursery, *processes])
    assert "the process that watched over it died" in str(run.exception(timeout=10))
    assert cpu(1).run(lambda: "born again") == "born again"


def test_a_killed_keeper_is_a_clear_error_and_the_next_run_works(cpu, gone):
    run = cpu(2).submit(tell_pids_and(have_children))
    processes = processes_of(run, 6)
    ranks = [each for each in processes if "sparkgap_server.nursery" in each.cmdline()]
    ranks[0].parent().kill()
    with pytest.raises(TrainingError, match=r"its keeper was killed by signal 9 from outside"):
        run.result(timeout=10)
    gone(processes)
    assert cpu(2).run(lambda: "still here") == "still here"


def test_a_rank_whose_keeper_is_frozen_ends_with_its_run(cpu, gone):
    run = cpu(2).submit(tell_pids_and(have_children))
    processes = processes_of(run, 6)
    keeper = next(each.parent() for each in processes if is_nursery(each.parent().parent()))
    keeper.suspend()
    run.cancel()
    gone([keeper, *processes])
    assert run.wait(timeout=20)
    assert run.status == "CANCELLED"


def test_a_task_that_spark_kills_while_it_closes_keeps_its_slot_until_its_rank_is_gone(cpu, tmp_path, sparkgap_server):
    """Spark kills the gang's other tasks when the first one fails; by then the second has failed by itself and waits for its rank."""

    def fail(folder):
        rank = int(os.environ["RANK"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(folder, str(os.getpid())).touch()
        await_file(Path(folder, "meet"))
        time.sleep(0.35 * rank)
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        try:
            raise ValueError(f"rank {rank}")
        finally:
            atexit.register(time.sleep, 1000)

    def alive(folder):
        return [
            pid
            for pid in map(int, (each.name for each in Path(folder).iterdir() if each.name.isdigit()))
            if Path(f"/proc/{pid}").exists()
        ]

    jvm = psutil.Process(sparkgap_server.pid)
    sockets = []
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        run = cpu(2, local_mode=False).submit(fail, str(folder))
        eventually_two = time.monotonic() + 60
        while len([*folder.iterdir()]) < 2:
            assert time.monotonic() < eventually_two
            time.sleep(0.01)
        (folder / "meet").touch()
        assert "ValueError: rank" in str(run.exception(timeout=60))
        # A gang of all slots starts when the last of them is free.
        assert cpu(4, local_mode=False, results="all").run(alive, str(folder)) == [[], [], [], []]
        sockets.append(len([each for each in jvm.net_connections("unix")]))
    assert sockets[-1] <= sockets[0] + 1, f"sockets of the server after each run: {sockets}"


@pytest.mark.timeout(180)  # starts a server
@pytest.mark.parametrize("end", ["stop", "SIGKILL"])
def test_the_end_of_the_server_is_the_end_of_its_ranks(gone, end):
    with LocalServer("local[2]") as server:
        session = SparkSession.builder.remote(server.url).create()
        try:
            run = TorchDistributor(2, use_gpu=False, spark=session).submit(have_children)
            processes = processes_of(run, 4)
        finally:
            session.stop()
        processes.append(nursery_of(psutil.Process(server.pid)))
        if end == "SIGKILL":
            os.kill(server.pid, signal.SIGKILL)
        else:
            server.stop()
        gone(processes)


# ---- Output that is too much ----


def test_fifty_megabytes_in_one_line_do_no_harm(cpu):
    def main():
        for _ in range(50):
            sys.stdout.write("x" * 1_000_000)
        sys.stdout.write("\nafterwards\n")
        return "returned"

    run = cpu(1).submit(main)
    assert run.result(timeout=60) == "returned"
    long, after = list(run.logs())
    assert long.text.startswith("xxx")
    assert len(long.text) < 100_000
    assert re.search(r"x … \[\d+ bytes cut\]$", long.text)
    assert after.text == "afterwards"


def test_two_hundred_thousand_lines_do_no_harm(cpu, capsys):
    def main():
        for number in range(200_000):
            print("line", number)
        return "returned"

    assert cpu(1).run(main) == "returned"
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    dropped = sum(map(int, re.findall(r"\[rank 0\] … (\d+) lines were dropped", shown.err)))
    assert lines[0] == "[rank 0] line 0"
    assert lines[-1] == "[rank 0] line 199999"
    assert len(lines) + dropped == 200_000


def test_binary_output_is_shown_escaped(cpu, capsys):
    def main():
        os.write(1, bytes(range(256)) + b"\nafterwards\n")

    cpu(1).run(main)
    assert "[rank 0] afterwards\n" in (out := capsys.readouterr().out)
    assert r"\xff" in out


def test_a_rank_may_close_its_output(cpu):
    def main():
        os.close(1)
        os.close(2)
        return "returned"

    assert cpu(1).run(main) == "returned"


def test_a_rank_may_close_its_output_streams(cpu):
    def main():
        sys.stdout.close()
        sys.stderr.close()
        return "returned"

    assert cpu(1).run(main) == "returned"


def test_a_failure_after_output_was_closed_is_told_all_the_same(cpu):
    def main():
        sys.stderr.close()
        raise ValueError("without a voice")

    with pytest.raises(TrainingError, match="ValueError: without a voice"):
        cpu(1).run(main)


def test_a_client_that_reads_nothing_does_not_hold_the_rank_up(cpu):
    def main():
        for number in range(100_000):
            print("line", number, "x" * 100)
        return "returned"

    run = cpu(1).submit(main)
    assert run.result(timeout=60) == "returned"
