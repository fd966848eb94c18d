"""What comes back from a run besides rank 0's value: all ranks' values, metrics, every rank's failure, and streams that are cut."""

from __future__ import annotations

import functools
import os
import re
import sys
import time

import pytest
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import PlanError, TorchDistributor, TrainingError, attach, training
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark)


@pytest.fixture(scope="module")
def small_results():
    """On a server with one megabyte for values and for events, which cuts streams after a second or 500 bytes, and operations after two seconds."""
    conf = {
        "spark.sparkgap.result.maxBytes": "1m",
        "spark.connect.execute.reattachable.senderMaxStreamDuration": "1s",
        "spark.connect.execute.reattachable.senderMaxStreamSize": "500b",
        "spark.sparkgap.follow.maxDuration": "2s",
        "spark.sparkgap.events.maxBytes": "1m",
    }
    with LocalServer("local[4]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        yield session
        session.stop()


def bytes_of(size):
    return bytes([int(os.environ["RANK"])]) * size


# ---- The values of all ranks ----


@pytest.mark.parametrize("local_mode", [True, False])
def test_all_values_arrive_in_the_order_of_the_ranks(cpu, local_mode):
    def main():
        rank = int(os.environ["RANK"])
        time.sleep(0.2 * (3 - rank))  # the first is the last to end
        return rank, bytes([rank]) * 3_000_000 * rank

    expected = [(rank, bytes([rank]) * 3_000_000 * rank) for rank in range(4)]
    assert cpu(4, local_mode, results="all").run(main) == expected


def test_one_rank_gives_a_list_of_one(cpu):
    assert cpu(1, results="all").run(lambda: None) == [None]


def test_scripts_give_none_for_each_rank(cpu, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("print('trained')\n")
    assert cpu(2, results="all").run(script) == [None, None]


def test_all_values_can_be_fetched_again_by_another_session(cpu, sparkgap_server):
    run = cpu(3, results="all").submit(lambda: os.environ["RANK"])
    assert run.result(timeout=60) == run.result() == ["0", "1", "2"]
    other = SparkSession.builder.remote(sparkgap_server.url).create()
    try:
        assert attach(other, run.id).result() == ["0", "1", "2"]
    finally:
        other.stop()


def test_rank_0_is_the_default_and_other_words_are_refused(cpu):
    assert cpu(2, results="rank0").run(lambda: os.environ["RANK"]) == "0"
    with pytest.raises(PlanError, match="results has to be 'rank0' or 'all', got 'rank1'"):
        cpu(2, results="rank1")


def test_a_value_that_cannot_be_pickled_names_its_rank(cpu):
    def main():
        return (each for each in "abc") if os.environ["RANK"] == "1" else None

    with pytest.raises(TrainingError, match="the value that rank 1 returned"):
        cpu(2, results="all").run(main)
    assert cpu(2).run(main) is None


@pytest.mark.parametrize("local_mode", [True, False])
def test_the_limit_is_for_all_values_together(small_results, local_mode):
    everyone = functools.partial(TorchDistributor, 4, local_mode, use_gpu=False, spark=small_results)
    assert everyone(results="all").run(bytes_of, 250_000) == [bytes([rank]) * 250_000 for rank in range(4)]
    assert everyone().run(bytes_of, 1_000_000) == bytes(1_000_000)
    with pytest.raises(
        TrainingError, match=r"the values of the ranks have more than 1048576 bytes together .*maxBytes"
    ):
        everyone(results="all").run(bytes_of, 500_000)


# ---- Metrics ----


def test_metrics_can_be_read_while_the_run_goes_on(cpu, tmp_path, eventually):
    def main(door):
        training.report(1, 2, loss=0.5)
        while not door.exists():
            time.sleep(0.01)
        training.report(2, 2, loss=0.25)

    door = tmp_path / "door"
    run = cpu(2).submit(main, door)
    eventually(lambda: len(run.metrics()) == 2, 60, "both ranks have reported")
    assert run.metrics()["loss"].tolist() == [0.5, 0.5]
    assert "1/2" in run._repr_html_()
    door.touch()
    run.result(timeout=30)
    table = run.metrics()
    assert table.groupby("rank")["loss"].apply(list).to_dict() == {0: [0.5, 0.25], 1: [0.5, 0.25]}
    assert len(run.plot().axes) == 1
    assert [file.parent.name for file in run.export_tensorboard(tmp_path / "board")] == ["rank-0", "rank-1"]


def test_two_thousand_reports_a_second_of_each_rank_all_arrive(cpu):
    def main(reports):
        began = time.monotonic()
        for step in range(1, reports + 1):
            training.report(step, reports, loss=1 / step, rate=0.1)
            while step > 2_000 * (time.monotonic() - began):
                time.sleep(0.001)
        return time.monotonic() - began

    run = cpu(3).submit(main, 8_000)
    assert run.result(timeout=100) >= 4
    began = time.monotonic()
    table = run.metrics()
    print(f"{len(table)} reports read in {time.monotonic() - began:.3f} s")
    assert table.attrs == {"dropped": 0, "thinned": 0, "lost_events": 0}
    for rank in range(3):
        mine = table[table["rank"] == rank]
        assert mine["step"].tolist() == list(range(1, 8_001))
        assert mine["loss"].tolist() == [1 / step for step in range(1, 8_001)]


def test_a_hot_loop_of_reports_is_thinned_and_its_last_one_arrives(cpu):
    def main():
        began = time.monotonic()
        for step in range(1, 300_001):
            training.report(step, 300_000, loss=1 / step)
        return time.monotonic() - began

    run = cpu(2, results="all").submit(main)
    seconds = max(run.result(timeout=100))
    table = run.metrics()
    assert len(table) + table.attrs["dropped"] == 600_000
    assert len(table) < 2 * (10_000 + 5_000 * seconds)
    assert table.groupby("rank")["step"].max().to_dict() == {0: 300_000, 1: 300_000}


def test_the_last_report_before_a_failure_arrives(cpu):
    def main():
        for step in range(1, 1001):
            training.report(step)
        raise ValueError("enough")

    run = cpu(1).submit(main)
    assert isinstance(run.exception(timeout=60), TrainingError)
    assert run.metrics()["step"].max() == 1000


def test_a_rank_that_forks_is_heard_once(cpu):
    def main():
        pid = os.fork()
        print("printed by both", flush=True)
        training.report(1)
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"  # the child comes back from main too

    run = cpu(1).submit(main)
    assert run.result(timeout=60) == "parent"
    assert [line.text for line in run.logs()] == ["printed by both"] * 2
    assert len(run.metrics()) == 1


@pytest.mark.parametrize(("end", "code"), [(lambda: sys.exit(3), 3), (lambda: sys.exit(), 0), (lambda: 1 / 0, 1)])
def test_a_forked_process_that_fails_is_not_the_rank(cpu, end, code):
    def main():
        pid = os.fork()
        if pid == 0:
            end()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert cpu(1).run(main) == code


# ---- Failures ----


@pytest.mark.parametrize("local_mode", [True, False])
def test_the_failures_of_all_ranks_that_fail_together_are_told(cpu, tmp_path, local_mode):
    def main(folder):
        rank = int(os.environ["RANK"])
        print("epoch 1 of rank", rank)
        (folder / str(rank)).touch()
        while len(list(folder.iterdir())) < 3:
            time.sleep(0.001)
        if rank == 2:
            os._exit(7)
        raise (KeyError if rank else ValueError)(f"from rank {rank}")

    with pytest.raises(TrainingError, match=r"rank . of 3 of .*main failed on") as caught:
        cpu(3, local_mode).run(main, tmp_path)
    error = caught.value
    together = [error, *error.others]
    assert len({each.rank for each in together}) == len(together) <= 3
    if local_mode:
        assert sorted(each.rank for each in together) == [0, 1, 2]
    for each in together:
        assert each.last_lines == (f"epoch 1 of rank {each.rank}",)
        assert each.host
        if each.rank == 2:
            assert (each.exit_code, each.__cause__) == (7, None)
        else:
            assert type(each.__cause__) is (KeyError if each.rank else ValueError)
            assert "raise (KeyError if rank else ValueError)" in each.traceback


def test_a_rank_that_dies_of_a_signal_says_which(cpu):
    def main():
        print("before", flush=True)
        os.kill(os.getpid(), 9)

    with pytest.raises(TrainingError, match="ended by signal 9") as caught:
        cpu(1).run(main)
    assert (caught.value.signal, caught.value.last_lines, caught.value.others) == (9, ("before",), [])


# ---- Streams that are cut ----


def test_history_and_follow_join_without_gap_or_double_on_cut_streams(small_results):
    lines, rounds = 3_000, 25

    def main():
        for number in range(lines):
            print(number)
            if number % (lines // rounds) == 0:
                training.report(number, lines, half=number / 2)
                time.sleep(0.15)  # some four seconds in all

    run = TorchDistributor(2, use_gpu=False, spark=small_results).submit(main)
    followed = list(run.logs(follow=True))
    assert run.result(timeout=60) is None
    for seen in (followed, list(run.logs()), list(attach(small_results, run.id).logs(follow=True))):
        for rank in (0, 1):
            assert [line.text for line in seen if line.rank == rank] == [str(number) for number in range(lines)]
    table = run.metrics()
    for rank in (0, 1):
        assert table[table["rank"] == rank]["step"].tolist() == list(range(0, lines, lines // rounds))


def test_run_shows_every_line_once_on_cut_streams(small_results, capsys):
    def main():
        for number in range(2_000):
            print(number, "x" * 100)
            if number % 200 == 0:
                time.sleep(0.2)
        return "returned"

    assert TorchDistributor(1, use_gpu=False, spark=small_results).run(main) == "returned"
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [
        str(number) for number in range(2_000)
    ]


# ---- Ranks that print without measure ----


def test_a_flood_of_lines_is_bounded_counted_and_said(cpu):
    def main():
        began = time.monotonic()
        block = b"".join(b"line %d\n" % number for number in range(1000))
        for _ in range(1000):
            os.write(1, block)
        return 1_000_000 / (time.monotonic() - began)

    run = cpu(1).submit(main)
    lines = run.logs(follow=True)
    shown = sum(1 for _ in lines)
    print(f"{run.result(timeout=60):.0f} lines a second")
    assert shown + lines.dropped == 1_000_000
    assert shown > 1000


def flood(rounds):
    """101 lines a round, and a report every hundred rounds."""
    for number in range(rounds):
        if number % 100 == 0:
            training.report(number, rounds, loss=1 / (number + 1))
        os.write(1, b"x" * 99 + b"\n")
        os.write(1, (b"y" * 99 + b"\n") * 100)


REPORTS = list(range(0, 800, 100))


def test_what_the_server_no_longer_has_is_counted_in_lines(small_results, capsys):
    """Its memory of a run's events is one megabyte here, the lines are eight."""
    distributor = TorchDistributor(1, use_gpu=False, spark=small_results)
    run = distributor.submit(flood, 800)
    assert run.wait(60)
    for lines in (run.logs(), attach(small_results, run.id).logs(follow=True)):
        shown = sum(1 for _ in lines)
        assert 1_000 < shown < 20_000
        assert shown + lines.dropped == 800 * 101
    table = run.metrics()
    assert table["step"].tolist() == REPORTS, "lines make room before reports do"
    assert table.attrs["lost_events"] > 0
    distributor.run(flood, 800)
    told = capsys.readouterr()
    missing = sum(int(number) for number in re.findall(r"… (\d+) lines", told.err))
    assert told.out.count("\n") + missing == 800 * 101


def curve(steps):
    """2,000 reports a second, with one spike and more figures than the server's half megabyte holds."""
    began = time.monotonic()
    for step in range(1, steps + 1):
        training.report(
            step, steps, loss=99.0 if step == 777 else 1.0, **{f"layer {layer}": float(step) for layer in range(30)}
        )
        while step > 2_000 * (time.monotonic() - began):
            time.sleep(0.001)


def test_a_curve_that_is_too_long_keeps_its_spike_and_its_end_in_memory_and_in_the_store(tmp_path):
    conf = {"spark.sparkgap.runs.dir": str(tmp_path), "spark.sparkgap.events.maxBytes": "1m"}
    with LocalServer("local[1]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        run = TorchDistributor(1, use_gpu=False, spark=session, run_id="curve").submit(curve, 6_000)
        assert run.result(100) is None
        before = run.metrics()
        session.stop()
    with LocalServer("local[1]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        after = attach(session, "curve").metrics()
        session.stop()
    assert sum(file.stat().st_size for file in tmp_path.rglob("[0-9]*")) < 4 << 20
    for table in (before, after):
        steps = table["step"].tolist()
        assert steps == sorted(set(steps)), "in order, none twice"
        assert steps[-500:] == list(range(5_501, 6_001)), "the newest are all there"
        assert table.set_index("step").loc[777, "loss"] == 99.0
        assert len(table) + table.attrs["dropped"] + table.attrs["thinned"] == 6_000
    assert before.attrs["thinned"] > 0
    assert set(before["step"]) <= set(after["step"])


def test_the_store_counts_the_lines_that_it_no_longer_has(tmp_path):
    conf = {"spark.sparkgap.runs.dir": str(tmp_path), "spark.sparkgap.events.maxBytes": "1m"}
    with LocalServer("local[1]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        run = TorchDistributor(1, use_gpu=False, spark=session, run_id="flood").submit(flood, 800)
        assert run.wait(60)
        session.stop()
    with LocalServer("local[1]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        lines = attach(session, "flood").logs()
        shown = sum(1 for _ in lines)
        assert 1_000 < shown < 80_000
        assert shown + lines.dropped == 800 * 101
        assert attach(session, "flood").metrics()["step"].tolist() == REPORTS
        session.stop()
