"""What is to be known of a rank's end reaches whoever looks at the run: files in its working directory, threads that were not awaited."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import TorchDistributor, TrainingError, attach, runs
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(180)

SAID = (
    r"left 1 file in its working directory, which was removed after its end: model-{rank}\.pt \(4 bytes\)\. "
    "Write what has to stay to storage outside"
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """On a server that keeps its runs, and waits a second for threads."""
    conf = {"spark.sparkgap.runs.dir": str(tmp_path_factory.mktemp("runs")), "spark.sparkgap.threads.timeout": "1s"}
    with LocalServer("local[4]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        yield session
        session.stop()


@pytest.fixture
def cpu(impatient):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=impatient)


def save() -> None:
    Path(f"model-{os.environ['RANK']}.pt").write_bytes(b"1234")


@pytest.mark.parametrize("local_mode", [True, False])
def test_files_left_by_ranks_are_named_in_the_notice_and_in_the_output(cpu, local_mode, impatient):
    run = cpu(2, local_mode).submit(save)
    run.wait()
    assert run.status == "SUCCEEDED"
    both = "; ".join(f"rank {rank} {SAID.format(rank=rank)}" for rank in range(2))
    assert re.fullmatch(both, run.notice)
    assert re.fullmatch(both, attach(impatient, run.id).notice)
    lines = {line.rank: line.text for line in run.logs() if "model" in line.text}
    assert all(re.fullmatch(f"sparkgap: rank {rank} {SAID.format(rank=rank)}", lines[rank]) for rank in range(2))


def test_of_many_ranks_the_first_are_named(cpu):
    run = cpu(4).submit(lambda: (save(), Path("more").touch()))
    run.wait()
    assert run.notice.count("left 2 files") == 4
    assert len({line.rank for line in run.logs() if "left 2 files" in line.text}) == 4


def test_files_of_a_rank_that_fails_are_named(cpu):
    def main():
        save()
        raise ValueError("diverged")

    run = cpu(1).submit(main)
    run.wait()
    assert isinstance(run.exception(), TrainingError)
    assert re.fullmatch(f"rank 0 {SAID.format(rank=0)}", run.notice)


def test_files_of_a_cancelled_run_are_named(cpu, eventually):
    def main():
        save()
        print("ready", flush=True)
        time.sleep(1000)

    run = cpu(1).submit(main)
    next(line for line in run.logs(follow=True) if line.text == "ready")
    run.cancel()
    run.wait()
    eventually(lambda: run.status == "CANCELLED" and run.notice, 20, "the notice")
    assert re.fullmatch(f"rank 0 {SAID.format(rank=0)}", run.notice)


def test_only_the_last_attempt_counts(cpu, impatient):
    def main():
        from sparkgap.training import attempt

        if attempt() == 0:
            save()
            raise ValueError("once more")

    run = cpu(1, max_failures=1).submit(main)
    run.wait()
    assert (run.status, run.notice) == ("SUCCEEDED", "")
    table = runs(impatient)
    assert table.loc[table["id"] == run.id, "notice"].tolist() == [""]


def test_a_value_counts_although_a_thread_never_ends_and_the_notice_names_it(cpu):
    def main():
        threading.Thread(target=threading.Event().wait, name="writer").start()
        return "value"

    run = cpu(1).submit(main)
    run.wait()
    assert run.result() == "value"
    assert run.notice.startswith(
        "rank 0 returned and waited 1 s (spark.sparkgap.threads.timeout) in vain for thread 'writer'"
    )


def test_a_run_succeeds_when_its_threads_have_written(spark, tmp_path):
    def main(path):
        def write():
            threading.main_thread().join()  # until the function has returned
            path.write_text("weights")

        threading.Thread(target=write).start()

    run = TorchDistributor(1, use_gpu=False, spark=spark).submit(main, tmp_path / "checkpoint")
    run.wait()
    assert (run.status, run.notice) == ("SUCCEEDED", "")
    assert (tmp_path / "checkpoint").read_text() == "weights"


def test_a_model_loads_and_predicts_in_a_program_of_its_own(spark, tmp_path):
    from sparkgap import predict_batch_udf

    def make():
        import argparse

        Path("cache").touch()
        options = argparse.ArgumentParser().parse_args()

        def predict(numbers):
            import numpy as np
            import torch

            main = sys.modules["__main__"]
            inside = [
                vars(options) == {},
                os.listdir() == ["cache"],
                not hasattr(main, "main"),
                main is sys.modules["__mp_main__"],
            ]
            return np.array([float(all(inside)) + torch.rand(1, dtype=torch.float64).item()] * len(numbers))

        return predict

    def drawn(version):
        udf = predict_batch_udf(make, return_type="double", batch_size=8, version=version)
        return spark.range(1).select(udf("id")).collect()[0][0]

    one, other = drawn("1"), drawn("2")
    assert 1 < one < 2
    assert 1 < other < 2
    assert one != other
