"""A real cluster: Spark's own standalone master, two workers with an executor each, and the server, started by deploy/standalone.sh.

Nothing may work only because driver and executor share a JVM, a folder or an environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sparkgap import ResourceError, TorchDistributor, TrainingError, cli, predict_batch_udf

SCRIPT = Path(__file__).parents[2] / "deploy" / "standalone.sh"

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster whose workers say that they have two GPUs each, 40 and 41 on both; a task gets one."""
    above = tmp_path_factory.mktemp("cluster")
    folder = above / "c"
    discovery = above / "gpus.sh"
    discovery.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["40", "41"]}'\n""")
    discovery.chmod(0o755)
    command = [str(SCRIPT), "start", "--dir", str(folder), "--python", sys.executable]
    for setting in (
        "spark.worker.resource.gpu.amount=2",
        f"spark.worker.resource.gpu.discoveryScript={discovery}",
        "spark.executor.resource.gpu.amount=2",
        "spark.task.resource.gpu.amount=1",
        "spark.speculation=true",
        "spark.speculation.minTaskRuntime=2s",
    ):
        command += ["--conf", setting]
    started = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert started.returncode == 0, started.stderr
    yield folder
    subprocess.run([str(SCRIPT), "stop", "--dir", str(folder)], check=True, timeout=60, capture_output=True)
    assert not marked_processes(folder), "the cluster left processes behind"


@pytest.fixture
def spark(cluster: Path) -> Iterator[SparkSession]:
    session = SparkSession.builder.remote((cluster / "url").read_text().strip()).create()
    yield session
    session.stop()


def marked_processes(folder: Path) -> list[psutil.Process]:
    """Everything that the cluster has started carries this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SPARKGAP_STANDALONE", "").startswith(f"{folder}:"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def executor_of(pid: int) -> int:
    """The executor's JVM above a process of this machine."""
    process = psutil.Process(pid)
    return next(each.pid for each in process.parents() if "CoarseGrainedExecutorBackend" in " ".join(each.cmdline()))


def gathered_ranks() -> Any:
    import os

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    mine = (dist.get_rank(), os.environ["NODE_RANK"], os.environ["LOCAL_RANK"], os.getppid(), os.getcwd())
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (mine, executor_of(os.getpid())))
    dist.destroy_process_group()
    return total.item(), gathered


def test_two_ranks_meet_from_two_executors(spark: SparkSession) -> None:
    total, ranks = TorchDistributor(2, local_mode=False, use_gpu=False, spark=spark).run(with_helpers(gathered_ranks))
    assert total == 3.0
    assert [(rank, node, local) for (rank, node, local, _, _), _ in ranks] == [(0, "0", "0"), (1, "1", "0")]
    executors = {executor for _, executor in ranks}
    assert len(executors) == 2, "both ranks ran in one executor"
    assert len({folder for (_, _, _, _, folder), _ in ranks}) == 2
    assert all(folder != os.getcwd() for (_, _, _, _, folder), _ in ranks)


def test_local_mode_puts_all_ranks_on_one_node(spark: SparkSession) -> None:
    _, ranks = TorchDistributor(3, local_mode=True, use_gpu=False, spark=spark).run(with_helpers(gathered_ranks))
    assert [(rank, node, local) for (rank, node, local, _, _), _ in ranks] == [
        (0, "0", "0"),
        (1, "0", "1"),
        (2, "0", "2"),
    ]
    assert len({executor for _, executor in ranks}) == 1


def test_predictions_come_from_both_executors(spark: SparkSession) -> None:
    def make_predict_fn() -> Any:
        import os

        import numpy as np

        return lambda x: {"twice": x * 2, "pid": np.full(len(x), os.getpid())}

    predict = predict_batch_udf(make_predict_fn, return_type="struct<twice: double, pid: long>", batch_size=7)
    rows = (
        spark.range(0, 400, 1, 4).select(F.col("id").cast("double").alias("x")).withColumn("p", predict("x")).collect()
    )
    assert [row.p.twice for row in rows] == [2.0 * row.x for row in rows]
    hosts = {row.p.pid for row in rows}
    assert len(hosts) == 2, "one model host in each of the two executors"
    assert len({executor_of(pid) for pid in hosts}) == 2


def first_time(marker: Path) -> bool:
    """Whether nobody on this machine has asked before."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def test_a_task_that_hangs_with_its_model_is_overtaken_on_another_host(spark: SparkSession, tmp_path: Path) -> None:
    hung = tmp_path / "hung"
    only_first = with_helpers(first_time)

    def make_predict_fn() -> Any:
        import time

        def predict(x: Any) -> Any:
            if 0 in x and only_first(hung):
                time.sleep(120)
            return x * 2

        return predict

    predict = predict_batch_udf(make_predict_fn, return_type="long", batch_size=10)
    # The task beside it waits for the same model, so that 38 of 40 end: enough for Spark to start the last ones again.
    began = time.monotonic()
    rows = spark.range(0, 400, 1, 40).select("id", predict("id").alias("p")).collect()
    assert time.monotonic() - began < 100, "nothing overtook the task that hung for 120 s"
    assert hung.exists()
    assert sorted(row.id for row in rows) == list(range(400))
    assert all(row.p == 2 * row.id for row in rows)


def test_a_task_whose_model_host_is_killed_is_run_again(spark: SparkSession, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    only_first = with_helpers(first_time)

    def make_predict_fn() -> Any:
        import os
        import signal

        def predict(x: Any) -> Any:
            if 205 in x and only_first(killed):
                os.kill(os.getpid(), signal.SIGKILL)
            return x * 2

        return predict

    predict = predict_batch_udf(make_predict_fn, return_type="long", batch_size=10)
    rows = spark.range(0, 400, 1, 4).select("id", predict("id").alias("p")).collect()
    assert killed.exists()
    assert [row.p for row in rows] == [2 * row.id for row in rows]
    assert len(rows) == 400


def broadcast_files(cluster: Path) -> list[Path]:
    """Weights as the executors hold them."""
    return [path for path in cluster.rglob("broadcast_*_python") if path.is_file()]


def test_weights_travel_to_each_executor_once(cluster: Path) -> None:
    import numpy as np

    weights = np.random.default_rng(0).integers(1, 100, 5_000_000)  # 40 MB

    def make_predict_fn() -> Any:
        import os

        total = int(weights.sum())
        return lambda x: {"sum": x + total, "pid": np.full(len(x), os.getpid())}

    predict = predict_batch_udf(make_predict_fn, return_type="struct<sum: long, pid: long>", batch_size=7)
    hosts, states = [], []
    for direct in ("true", "false", "true"):
        session = SparkSession.builder.remote((cluster / "url").read_text().strip()).create()
        session.conf.set("spark.sparkgap.predict.direct", direct)
        rows = [row.p for row in session.range(0, 400, 1, 4).select(predict("id").alias("p")).collect()]
        session.stop()
        assert sorted(row.sum for row in rows) == [int(weights.sum()) + i for i in range(400)]
        hosts.append({row.pid for row in rows})
        states.append({(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in broadcast_files(cluster)})
    assert hosts[0] == hosts[1] == hosts[2]
    assert {executor_of(pid) for pid in hosts[0]} == {executor_of(pid) for pid in hosts[2]}
    assert states[0] == states[1] == states[2]
    files = broadcast_files(cluster)
    assert len(files) == len(hosts[0]) == 2, "one file in each of the two executors"
    for path in files:
        assert path.stat().st_size > weights.nbytes
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_failing_rank_is_named_and_nothing_is_left(cluster: Path, spark: SparkSession) -> None:
    def main_fn() -> None:
        import os

        import torch.distributed as dist

        dist.init_process_group("gloo")
        if os.environ["RANK"] == "1":
            raise ArithmeticError("no more numbers")
        dist.barrier()

    with pytest.raises(TrainingError, match="rank 1 of 2") as caught:
        TorchDistributor(2, local_mode=False, use_gpu=False, spark=spark).run(main_fn)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    pids = {failure.pid for failure in caught.value.failures}
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not alive
    assert all(process.is_running() for process in marked_processes(cluster))


def visible_gpus() -> Any:
    import os

    import torch.distributed as dist

    dist.init_process_group("gloo")
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(
        gathered, (os.environ["NODE_RANK"], os.environ["CUDA_VISIBLE_DEVICES"], executor_of(os.getpid()))
    )
    dist.destroy_process_group()
    return gathered


def test_each_rank_sees_the_gpu_of_its_task_and_no_other(spark: SparkSession) -> None:
    ranks = TorchDistributor(4, local_mode=False, use_gpu=True, spark=spark).run(with_helpers(visible_gpus))
    assert [node for node, _, _ in ranks] == ["0", "1", "2", "3"]
    by_executor: dict[int, list[str]] = {}
    for _, gpus, executor in ranks:
        by_executor.setdefault(executor, []).append(gpus)
    assert [sorted(gpus) for gpus in by_executor.values()] == [["40", "41"], ["40", "41"]]


def test_without_gpus_asked_for_none_are_seen(spark: SparkSession) -> None:
    ranks = TorchDistributor(2, local_mode=False, use_gpu=False, spark=spark).run(with_helpers(visible_gpus))
    assert [gpus for _, gpus, _ in ranks] == ["", ""]


def test_the_doctor_sees_both_executors_with_their_gpus(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARK_REMOTE", (cluster / "url").read_text().strip())
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--json"])
    assert end.value.code == 0
    told = json.loads(capsys.readouterr().out)
    executors = told["server"]["executors"]
    assert [(each["cores"], each["gpus"], bool(each["torch"])) for each in executors] == [(2, ["40", "41"], True)] * 2
    assert len({each["host"] for each in executors}) == 2
    checks = {each["name"]: each["found"] for each in told["checks"]}
    assert checks["slots"].startswith("4 of 4 task slots free")
    assert checks["GPUs"].startswith("4 GPUs on 2 executors, 1 a task: use_gpu=True trains with up to 4 ranks")


def test_all_ranks_of_local_mode_share_the_gpus_of_a_task_that_is_cut_for_them(spark: SparkSession) -> None:
    """`spark.task.resource.gpu.amount` is 1 here."""
    ranks = TorchDistributor(2, local_mode=True, use_gpu=True, spark=spark).run(with_helpers(visible_gpus))
    assert [gpus for _, gpus, _ in ranks] == ["40,41", "40,41"]


def test_a_rank_gets_the_gpus_and_cores_that_it_asks_for(spark: SparkSession) -> None:
    distributor = TorchDistributor(2, local_mode=False, use_gpu=True, spark=spark, resources={"gpus": 2, "cpus": 2})
    ranks = distributor.run(with_helpers(visible_gpus))
    assert [gpus for _, gpus, _ in ranks] == ["40,41", "40,41"]
    assert len({executor for *_, executor in ranks}) == 2
    threads = TorchDistributor(1, use_gpu=False, spark=spark, resources={"cpus": 2}).run(with_helpers(threads_of_torch))
    assert threads == (2, "2")


def threads_of_torch() -> tuple[int, str]:
    import os

    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def test_more_than_an_executor_has_is_refused(spark: SparkSession) -> None:
    with pytest.raises(
        ResourceError,
        match=r"local_mode=True puts all 3 ranks into one task, which needs 3 GPUs, and an executor has 2 "
        r"\(spark\.executor\.resource\.gpu\.amount\): pass num_processes=2, the most for which there are GPUs, local_mode=False",
    ):
        TorchDistributor(3, local_mode=True, use_gpu=True, spark=spark).run(visible_gpus)
    with pytest.raises(
        ResourceError,
        match=r"Spark cannot cut such tasks here: The number of cores per executor \(=2\) has to be >= .* per task = 8",
    ):
        TorchDistributor(2, local_mode=False, use_gpu=False, spark=spark, resources={"cpus": 8}).run(visible_gpus)


def with_helpers(function: Any) -> Any:
    """Tests are modules that the workers cannot import, so what ranks run is pickled by value."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return function
