"""Training as its user sees it, on a real server: values, the ranks' environment, scripts, live output, and all that a `Run` offers."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sparkgap
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import (
    PlanError,
    Run,
    RunCancelledError,
    RunNotFoundError,
    TorchDistributor,
    TrainingError,
    attach,
    training,
)

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark)


@pytest.fixture
def other_session(sparkgap_server):
    """A second session of the same user, as another process of theirs would have."""
    session = SparkSession.builder.remote(sparkgap_server.url).create()
    yield session
    session.stop()


@pytest.fixture
def strangers_session(sparkgap_server):
    """A session of another user."""
    session = SparkSession.builder.remote(f"{sparkgap_server.url};user_id=eve").create()
    yield session
    session.stop()


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
    return "went on"


def sum_of_ranks():
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    value = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(value)
    world_size = dist.get_world_size()
    dist.destroy_process_group()
    return value.item(), world_size


# ---- Values ----


def test_run_returns_what_rank_0_returned(cpu):
    def main():
        import os

        return f"from rank {os.environ['RANK']}"

    assert cpu(2).run(main) == "from rank 0"


def test_arguments_reach_the_function_by_position_and_by_name(cpu):
    def main(first, second, *rest, name, spark=None):
        return first, second, rest, name, spark

    assert cpu(1).run(main, 1, [2, 3], "four", name={"five": 6}, spark="ours to use") == (
        1,
        [2, 3],
        ("four",),
        {"five": 6},
        "ours to use",
    )


def test_a_function_that_returns_nothing_gives_none(cpu):
    assert cpu(1).run(lambda: None) is None


def test_a_large_value_arrives_whole(cpu):
    def main():
        import random

        return random.Random(7).randbytes(20_000_000)

    import random

    assert cpu(1).run(main) == random.Random(7).randbytes(20_000_000)


def test_a_large_value_can_be_fetched_again_from_another_session(cpu, other_session):
    run = cpu(1).submit(lambda: bytes(5_000_000))
    assert run.result(timeout=60) == bytes(5_000_000)
    assert attach(other_session, run.id).result(timeout=10) == bytes(5_000_000)


def test_a_large_argument_arrives_whole(cpu):
    argument = os.urandom(20_000_000)
    assert cpu(1).run(lambda data: hashlib.sha256(data).hexdigest(), argument) == hashlib.sha256(argument).hexdigest()


def test_the_active_session_is_used_when_none_is_given(spark):
    assert TorchDistributor(1, use_gpu=False).run(lambda: "here") == "here"


def test_a_fresh_session_gets_its_value(sparkgap_server):
    for attempt in range(3):
        session = SparkSession.builder.remote(sparkgap_server.url).create()
        try:
            assert TorchDistributor(2, use_gpu=False, spark=session).run(sum_of_ranks) == (3.0, 2), attempt
        finally:
            session.stop()


# ---- Several ranks ----


@pytest.mark.parametrize("local_mode", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_meet_and_reduce(cpu, ranks, local_mode):
    assert cpu(ranks, local_mode).run(sum_of_ranks) == (ranks * (ranks + 1) / 2, ranks)


def test_the_ranks_of_one_run_are_different_processes_of_the_same_attempt(cpu):
    def main():
        import os

        import torch.distributed as dist

        dist.init_process_group("gloo")
        pids = [None] * dist.get_world_size()
        dist.all_gather_object(pids, os.getpid())
        dist.destroy_process_group()
        return pids

    pids = cpu(3).run(main)
    assert len(set(pids)) == 3
    assert os.getpid() not in pids


def environments(names):
    import torch.distributed as dist

    dist.init_process_group("gloo")
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, {name: os.environ.get(name) for name in names})
    dist.destroy_process_group()
    return gathered


# A barrier task counts as one node: local mode has one task that holds every rank, otherwise each rank has a task of its own.
@pytest.mark.parametrize(
    ("local_mode", "expected"),
    [
        (
            True,
            {
                "RANK": ["0", "1", "2"],
                "LOCAL_RANK": ["0", "1", "2"],
                "WORLD_SIZE": ["3", "3", "3"],
                "LOCAL_WORLD_SIZE": ["3", "3", "3"],
                "NODE_RANK": ["0", "0", "0"],
                "GROUP_RANK": ["0", "0", "0"],
                "CUDA_VISIBLE_DEVICES": ["", "", ""],
            },
        ),
        (
            False,
            {
                "RANK": ["0", "1", "2"],
                "LOCAL_RANK": ["0", "0", "0"],
                "WORLD_SIZE": ["3", "3", "3"],
                "LOCAL_WORLD_SIZE": ["1", "1", "1"],
                "NODE_RANK": ["0", "1", "2"],
                "GROUP_RANK": ["0", "1", "2"],
                "CUDA_VISIBLE_DEVICES": ["", "", ""],
            },
        ),
    ],
)
def test_each_rank_finds_the_environment_of_torchrun(cpu, local_mode, expected):
    found = cpu(3, local_mode).run(environments, [*expected, "MASTER_ADDR", "MASTER_PORT"])

    assert {name: [each[name] for each in found] for name in expected} == expected
    assert {each["MASTER_ADDR"] for each in found} == {"127.0.0.1"}
    ports = {each["MASTER_PORT"] for each in found}
    assert len(ports) == 1
    assert 1024 <= int(ports.pop()) < 65536


def test_the_environment_of_one_run_does_not_reach_the_next(cpu):
    def leave_traces():
        import os
        import sys

        os.environ["LEFT_BEHIND"] = "yes"
        sys.argv = ["left behind"]

    cpu(1).run(leave_traces)
    assert cpu(1).run(lambda: ("LEFT_BEHIND" in os.environ, sys.argv == ["left behind"])) == (False, False)


def test_ranks_do_not_hold_the_servers_token(cpu, sparkgap_server):
    token = sparkgap_server.url.split("token=")[1]
    environment = cpu(1).run(lambda: dict(os.environ))
    assert token not in str(environment)


def test_ranks_draw_different_random_numbers(cpu):
    def main():
        import random

        import numpy
        import torch.distributed as dist

        dist.init_process_group("gloo")
        drawn = [None] * 2
        dist.all_gather_object(drawn, (random.random(), numpy.random.rand()))
        dist.destroy_process_group()
        return drawn

    (first, first_numpy), (second, second_numpy) = cpu(2).run(main)
    assert first != second
    assert first_numpy != second_numpy


def test_a_ddp_training_learns_and_keeps_the_replicas_equal(cpu):
    def main(steps):
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        dist.init_process_group("gloo")
        rank = dist.get_rank()
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(100 + rank)  # each rank has data of its own
        inputs = torch.randn(64, 4)
        targets = inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights = [torch.zeros(1, 4) for _ in range(2)]
        dist.all_gather(weights, model.module.weight.detach())
        dist.destroy_process_group()
        return losses[0], losses[-1], [weight.tolist() for weight in weights]

    first, last, (one, other) = cpu(2, local_mode=False).run(main, 60)
    assert last < first / 100
    assert one == other
    assert one[0] == pytest.approx([1.0, -2.0, 3.0, 0.5], abs=0.2)


# ---- Scripts ----


@pytest.fixture
def script(tmp_path):
    """Writes a script on the client's disk and gives its path."""

    def write(source):
        path = tmp_path / "train.py"
        path.write_text(source)
        return path

    return write


@pytest.mark.parametrize("kind", [str, Path])
def test_a_script_runs_as_main_with_its_arguments_and_returns_none(cpu, script, tmp_path, kind):
    out = tmp_path / "out"
    path = script(
        "import os, sys\n"
        "if __name__ == '__main__':\n"
        "    with open(sys.argv[1] + os.environ['RANK'], 'w') as file:\n"
        "        print(*sys.argv[2:], os.path.basename(sys.argv[0]), os.path.basename(__file__), sep='|', file=file)\n"
    )
    assert cpu(2).run(kind(path), str(out), "--epochs", 3) is None
    assert Path(f"{out}0").read_text() == "--epochs|3|train.py|train.py\n"
    assert Path(f"{out}1").read_text() == "--epochs|3|train.py|train.py\n"


def test_it_is_the_clients_file_that_runs(cpu, script, tmp_path, eventually):
    door = tmp_path / "door"
    path = script(
        "import pathlib, sys, time\n"
        "print('this is', __file__, flush=True)\n"
        "deadline = time.monotonic() + 60\n"
        "while not pathlib.Path(sys.argv[1]).exists() and time.monotonic() < deadline:\n"
        "    time.sleep(0.01)\n"
    )
    run = cpu(1).submit(path, str(door))
    path.unlink()  # the server must have its own copy by now
    line = next(run.logs(follow=True))
    door.touch()
    assert run.result(timeout=30) is None
    assert line.text.startswith("this is ")
    assert line.text != f"this is {path}"
    eventually(lambda: not Path(line.text.removeprefix("this is ")).exists(), 5, "the server's copy is removed")


def test_a_script_may_end_with_exit_status_0(cpu, script):
    assert cpu(1).run(script("import sys\nsys.exit(0)\n")) is None
    assert cpu(1).run(script("import sys\nsys.exit()\n")) is None
    assert cpu(2, results="all").run(script("import os\nos._exit(0)\n")) == [None, None]


def test_a_run_of_a_script_ends_when_its_threads_do(cpu, script, tmp_path):
    written = tmp_path / "checkpoint"
    source = f"import pathlib, threading, time\n\ndef save():\n    time.sleep(0.5)\n    pathlib.Path({str(written)!r}).touch()\n"
    cpu(1).run(script(f"{source}\nthreading.Thread(target=save).start()\n"))
    assert written.exists()


def test_a_script_that_exits_with_another_status_fails_with_it(cpu, script):
    with pytest.raises(TrainingError, match=r"rank 0 of 1 of train\.py failed .*exit status 7") as caught:
        cpu(1).run(script("import sys\nsys.exit(7)\n"))
    assert caught.value.exit_code == 7


def test_a_script_that_exits_with_a_message_fails_with_it(cpu, script, capsys):
    with pytest.raises(TrainingError, match="no such data set") as caught:
        cpu(1).run(script("import sys\nsys.exit('no such data set')\n"))
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "[rank 0] no such data set\n"  # as python prints it, without a traceback


def test_a_script_that_raises_fails_with_its_traceback(cpu, script):
    with pytest.raises(TrainingError, match="ZeroDivisionError") as caught:
        cpu(1).run(script("def f():\n    return 1 / 0\n\nf()\n"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "train.py" in caught.value.traceback
    assert "line 2, in f" in caught.value.traceback
    assert "runpy" not in caught.value.traceback


# ---- Output ----


def test_lines_are_shown_with_the_rank_that_printed_them(cpu, capsys):
    def main():
        rank = os.environ["RANK"]
        print(f"out of {rank}", flush=True)
        print(f"err of {rank}", file=sys.stderr, flush=True)

    cpu(2).run(main)
    shown = capsys.readouterr()
    assert sorted(shown.out.splitlines()) == ["[rank 0] out of 0", "[rank 1] out of 1"]
    assert sorted(shown.err.splitlines()) == ["[rank 0] err of 0", "[rank 1] err of 1"]


def test_output_below_python_is_shown_too(cpu, capfd):
    def main():
        os.write(1, b"written to the descriptor\n")
        os.system("echo by a child process")

    cpu(1).run(main)
    assert capfd.readouterr().out == "[rank 0] written to the descriptor\n[rank 0] by a child process\n"


def test_a_last_line_without_line_end_is_shown(cpu, capsys):
    def main():
        sys.stdout.write("no line end")

    cpu(1).run(main)
    assert capsys.readouterr().out == "[rank 0] no line end\n"


def test_lines_arrive_while_the_rank_still_runs(cpu, tmp_path):
    door = tmp_path / "door"
    run = cpu(2).submit(speak_and_wait, door)
    lines = run.logs(follow=True)
    assert {str(next(lines)), str(next(lines))} == {"[rank 0] ready", "[rank 1] ready"}
    assert run.status == "RUNNING"
    door.touch()  # no rank can end before this
    assert run.result(timeout=30) == "went on"
    assert list(lines) == []


def test_run_shows_lines_while_the_rank_still_runs(cpu, tmp_path, monkeypatch):
    door = tmp_path / "door"

    class OpensTheDoor:
        """Lets the rank go on only when its line has been shown."""

        def write(self, text):
            if text == "[rank 0] ready\n":
                door.touch()

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", OpensTheDoor())
    assert cpu(1).run(speak_and_wait, door) == "went on"


def test_lines_without_a_flush_arrive_while_the_rank_still_runs(cpu, tmp_path):
    def main(door):
        print("not flushed")
        await_file(door)

    door = tmp_path / "door"
    run = cpu(1).submit(main, door)
    assert next(run.logs(follow=True)).text == "not flushed"
    door.touch()
    run.result(timeout=30)


def test_logs_can_be_read_again_by_rank_and_by_time(cpu, tmp_path):
    def main(door):
        print("early", flush=True)
        await_file(door)
        print("late", file=sys.stderr, flush=True)

    door = tmp_path / "door"
    before = datetime.now(timezone.utc)
    run = cpu(2).submit(main, door)
    for line in run.logs(follow=True, rank=1):
        assert line.text == "early"
        break
    between = datetime.now(timezone.utc)
    door.touch()
    run.result(timeout=30)

    assert sorted(line.text for line in run.logs()) == ["early", "early", "late", "late"]
    assert [(line.text, line.stream) for line in run.logs(rank=1)] == [("early", "stdout"), ("late", "stderr")]
    assert [line.text for line in run.logs(rank=0, since=between)] == ["late"]
    assert {line.attempt for line in run.logs()} == {0}
    assert all(before - timedelta(seconds=1) < line.time < datetime.now(timezone.utc) for line in run.logs())


def test_a_progress_bar_that_overwrites_itself_is_one_line(cpu, capsys):
    def main():
        for step in range(101):
            sys.stdout.write(f"\r{step:3d}%")
        sys.stdout.write("\n")

    cpu(1).run(main)
    assert capsys.readouterr().out == "[rank 0] 100%\n"


# ---- Runs ----


def test_a_submitted_run_goes_through_its_states(cpu, tmp_path):
    door = tmp_path / "door"
    run = cpu(1, name="patience").submit(speak_and_wait, door)
    assert run.name == "patience"
    assert run.attempts == 1
    next(run.logs(follow=True))
    assert run.status == "RUNNING"
    assert run.wait(timeout=0.2) is False
    with pytest.raises(TimeoutError, match=rf"run {run.id} has not ended after 0\.2 s; it is RUNNING"):
        run.result(timeout=0.2)
    with pytest.raises(TimeoutError, match="has not ended"):
        run.exception(timeout=0.2)
    door.touch()
    assert run.wait(timeout=30) is True
    assert run.status == "SUCCEEDED"
    assert run.exception() is None
    assert run.result() == "went on"
    assert run.result() == "went on"
    assert repr(run) == f"Run(id='{run.id}', name='patience', status=SUCCEEDED)"


def test_a_failed_run_gives_its_exception(cpu):
    def main():
        raise KeyError("lost")

    run = cpu(1).submit(main)
    error = run.exception(timeout=30)
    assert isinstance(error, TrainingError)
    assert isinstance(error.__cause__, KeyError)
    assert run.status == "FAILED"
    with pytest.raises(TrainingError, match="lost"):
        run.result()


def test_a_cancelled_run_says_why(cpu, tmp_path):
    run = cpu(2).submit(speak_and_wait, tmp_path / "door")
    next(run.logs(follow=True))
    run.cancel("changed my mind")
    assert run.wait(timeout=10)
    assert run.status == "CANCELLED"
    with pytest.raises(RunCancelledError, match=rf"run {run.id} was cancelled: changed my mind"):
        run.result()
    assert isinstance(run.exception(), RunCancelledError)


def test_reports_become_rows_of_metrics(cpu):
    def main():
        rank = int(os.environ["RANK"])
        for step in (1, 2, 3):
            training.report(step, 3, loss=1 / step, rank_squared=rank**2)

    run = cpu(2).submit(main)
    run.result(timeout=30)
    metrics = run.metrics()
    assert list(metrics.columns) == ["rank", "attempt", "step", "total", "time", "loss", "rank_squared"]
    for rank in (0, 1):
        mine = metrics[metrics["rank"] == rank]
        assert mine["step"].tolist() == [1, 2, 3]
        assert mine["total"].tolist() == [3, 3, 3]
        assert mine["loss"].tolist() == pytest.approx([1, 1 / 2, 1 / 3])
        assert set(mine["rank_squared"]) == {rank**2}
        assert mine["time"].is_monotonic_increasing


def test_metrics_of_a_run_without_reports_are_empty(cpu):
    run = cpu(1).submit(lambda: None)
    run.result(timeout=30)
    assert run.metrics().empty


def test_reports_are_shown_in_a_terminal_while_run_waits(cpu, capsys, monkeypatch):
    cpu(1).run(lambda: training.report(5, 5, loss=0.25))
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cpu(1).run(lambda: training.report(5, 5, loss=0.25))
    assert "5/5 [00:00<?, ?step/s, loss=0.25]" in capsys.readouterr().err


def test_a_report_outside_a_run_does_nothing():
    training.report(1, 2, loss=0.5)


def test_the_same_plan_under_the_same_id_is_the_same_run(cpu, tmp_path):
    mark = tmp_path / "mark"

    def main(path):
        with open(path, "a") as file:
            file.write("x")
        return "once"

    run_id = f"same-{time.time_ns()}"
    first = cpu(1, run_id=run_id).submit(main, mark)
    second = cpu(1, run_id=run_id).submit(main, mark)
    assert first.result(timeout=30) == second.result(timeout=30) == "once"
    third = cpu(1, run_id=run_id).run(main, mark)
    assert third == "once"
    assert mark.read_text() == "x", "the plan ran more than once"


def test_another_plan_under_the_same_id_is_refused(cpu):
    run_id = f"taken-{time.time_ns()}"
    run = cpu(1, run_id=run_id).submit(lambda: 1)
    with pytest.raises(PlanError, match=rf"run id {run_id} is taken by a run with another plan: choose another id"):
        cpu(1, run_id=run_id).submit(lambda: 2)
    assert run.result(timeout=30) == 1


def test_another_session_of_the_same_user_takes_a_run_up(cpu, other_session, tmp_path):
    door = tmp_path / "door"
    run = cpu(1, name="shared").submit(speak_and_wait, door)
    taken_up = attach(other_session, run.id)
    assert (taken_up.id, taken_up.name) == (run.id, "shared")
    assert next(taken_up.logs(follow=True)).text == "ready"
    door.touch()
    assert taken_up.result(timeout=30) == "went on"


def test_a_run_goes_on_when_its_session_is_closed(sparkgap_server, spark, tmp_path):
    door = tmp_path / "door"
    leaving = SparkSession.builder.remote(sparkgap_server.url).create()
    try:
        run_id = TorchDistributor(1, use_gpu=False, spark=leaving).submit(speak_and_wait, door).id
    finally:
        leaving.stop()
    run = attach(spark, run_id)
    assert next(run.logs(follow=True)).text == "ready"
    door.touch()
    assert run.result(timeout=30) == "went on"


def test_a_run_of_another_user_looks_like_one_that_does_not_exist(cpu, strangers_session):
    run = cpu(1).submit(lambda: "mine")
    with pytest.raises(RunNotFoundError) as foreign:
        attach(strangers_session, run.id)
    with pytest.raises(RunNotFoundError) as missing:
        attach(strangers_session, "no-such-run")
    assert str(foreign.value).replace(run.id, "ID") == str(missing.value).replace("no-such-run", "ID")
    stranger = Run(strangers_session, run._last)  # with all that its owner knows
    for call in (
        stranger.cancel,
        stranger.wait,
        lambda: list(stranger.logs()),
        lambda: stranger.metrics(),
        stranger._fetch_result,
    ):
        with pytest.raises(RunNotFoundError):
            call()
    assert run.id not in set(sparkgap.runs(strangers_session)["id"])
    assert run.result(timeout=30) == "mine"


def test_two_users_may_choose_the_same_id(cpu, strangers_session):
    run_id = f"popular-{time.time_ns()}"
    mine = cpu(1, run_id=run_id).submit(lambda: "mine")
    theirs = TorchDistributor(1, use_gpu=False, spark=strangers_session, run_id=run_id).submit(lambda: "theirs")
    assert mine.result(timeout=30) == "mine"
    assert theirs.result(timeout=30) == "theirs"


def test_runs_work_side_by_side(cpu, tmp_path):
    def main(number, mine, next_one):
        import pathlib

        pathlib.Path(mine).touch()
        await_file(next_one)  # so all of them have to run at the same time
        return number

    doors = [tmp_path / f"door-{number}" for number in range(4)]
    runs = [cpu(1).submit(main, number, doors[number], doors[number - 1]) for number in range(4)]
    assert [run.result(timeout=60) for run in runs] == [0, 1, 2, 3]


def test_a_run_waits_for_its_slots_while_others_have_them(cpu, tmp_path):
    door = tmp_path / "door"
    first = cpu(4, local_mode=False).submit(speak_and_wait, door)
    next(first.logs(follow=True))
    second = cpu(1).submit(lambda: "afterwards")
    assert second.wait(timeout=0.5) is False
    door.touch()
    assert first.result(timeout=30) == "went on"
    assert second.result(timeout=60) == "afterwards"


def test_the_attributes_are_those_of_pysparks_distributor(cpu):
    from pyspark.ml.torch.distributor import TorchDistributor as PysparksDistributor

    theirs, ours = PysparksDistributor(2, local_mode=False, use_gpu=False), cpu(2, local_mode=False)
    only_the_server_knows = {"num_tasks", "is_spark_local_master"}
    for name in vars(theirs).keys() - only_the_server_knows - {"input_params"}:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.input_params == {
        name: value for name, value in theirs.input_params.items() if name not in only_the_server_knows
    }
    ours.num_processes = 1
    assert ours.input_params["num_processes"] == 1
    assert ours.run(lambda: os.environ["WORLD_SIZE"]) == "1"
    for name in only_the_server_knows:
        assert not hasattr(ours, name)
