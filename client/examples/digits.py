"""Train a digit classifier on a Spark cluster and apply it there, from a client that needs neither Java nor torch.

    python client/examples/digits.py                       # starts a local server by itself
    python client/examples/digits.py --remote sc://host:15002 --data /a/folder/that/the/cluster/sees

Ends with a table of wall times, a picture, and status 1 if fewer than 95 % of the held-out digits are read correctly.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType
from sparkgap import TorchDistributor, predict_batch_udf
from sparkgap.training import report

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    Predict = Callable[[np.ndarray], dict[str, np.ndarray]]

ANSWER = StructType().add("digit", "integer").add("confidence", "float")
SECONDS: dict[str, float] = {}  # wall time of each stage


def main() -> int:
    options = parse_options()
    with ExitStack() as cleanup:
        with stage("connect" if options.remote else "start a local server"):
            spark, folder = connect(options, cleanup)
        digits = f"{folder}/digits.parquet"
        # A new name each time: executors know a loaded model by its make_predict_fn and what that refers to.
        checkpoint = f"{folder}/digits-{datetime.now():%Y%m%d-%H%M%S}.pt"
        with stage("write the digits as Parquet"):
            write_digits(spark, digits)
        with stage(f"train on {options.processes} processes"):
            distributor = TorchDistributor(options.processes, options.local_mode, use_gpu=False, spark=spark)
            training = distributor.run(train, digits, checkpoint, epochs=options.epochs)
        with stage("predict the held-out digits"):
            load = classifier(checkpoint)
            classify = predict_batch_udf(load, return_type=ANSWER, batch_size=128, input_tensor_shapes=[[1, 8, 8]])
            held_out = spark.read.parquet(digits).where("split = 'test'").withColumn("answer", classify("pixels"))
            answers = held_out.select("pixels", "label", "answer.digit", "answer.confidence").toPandas()
    return show(training, answers, options.output)


# --- what runs on the cluster -----------------------------------------------------------------------------------------


def network() -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 4 * 4, 10),
    )


def train(digits: str, checkpoint: str, epochs: int, batch_size: int = 32, rate: float = 3e-3) -> dict[str, Any]:
    """Run on every rank; rank 0 writes the checkpoint, and what it returns is what `run` returns."""
    import pyarrow.parquet as pq
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    rows = pq.read_table(digits, columns=["pixels", "label"], filters=[("split", "=", "train")]).to_pydict()
    dataset = TensorDataset(torch.tensor(rows["pixels"]).reshape(-1, 1, 8, 8), torch.tensor(rows["label"]))
    shard = DistributedSampler(dataset, seed=0)  # deals the same number of rows to each rank
    batches = DataLoader(dataset, batch_size, sampler=shard)

    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = epochs * len(batches)
    losses: list[float] = []
    for epoch in range(epochs):
        shard.set_epoch(epoch)
        for images, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            report(len(losses), steps, loss=losses[-1])
        if rank == 0:
            print(f"epoch {epoch + 1:2}/{epochs}  loss {np.mean(losses[-len(batches) :]):.4f}", flush=True)

    if rank == 0:
        torch.save(model.module.state_dict(), f"{checkpoint}.part")  # nobody can read a half-written file
        os.replace(f"{checkpoint}.part", checkpoint)
    curve = torch.tensor(losses)
    dist.all_reduce(curve)
    dist.destroy_process_group()
    return {"loss": (curve / processes).tolist(), "epochs": epochs, "processes": processes}


def classifier(checkpoint: str) -> Callable[[], Predict]:
    """Return what the cluster calls once an executor, to load the model that then answers every batch there."""

    def make_predict_fn() -> Predict:
        import torch

        torch.set_num_threads(1)
        model = network().eval()
        model.load_state_dict(torch.load(checkpoint, weights_only=True))

        def predict(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                confidence, digit = model(torch.tensor(images)).softmax(dim=1).max(dim=1)
            return {"digit": digit.int().numpy(), "confidence": confidence.numpy()}

        return predict

    return make_predict_fn


# --- what runs here ---------------------------------------------------------------------------------------------------


def write_digits(spark: SparkSession, path: str) -> None:
    """Let Spark write scikit-learn's 1797 scanned digits as pixels (8 x 8, 0 to 1), label, split (a fifth held out)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    split = np.where(np.random.default_rng(0).random(len(labels)) < 0.2, "test", "train")
    rows = list(zip((images / 16).tolist(), labels.tolist(), split.tolist(), strict=True))
    schema = "pixels array<float>, label int, split string"
    spark.createDataFrame(rows, schema).write.parquet(path, mode="overwrite")


def connect(options: argparse.Namespace, cleanup: ExitStack) -> tuple[SparkSession, str]:
    """Open a session and a folder, and leave it to `cleanup` to close them."""
    folder = options.data or cleanup.enter_context(tempfile.TemporaryDirectory(prefix="sparkgap-digits-"))
    if not options.remote:
        from sparkgap_server.local import LocalServer

        options.remote = cleanup.enter_context(LocalServer()).url
    spark = SparkSession.builder.remote(options.remote).getOrCreate()
    cleanup.callback(spark.stop)
    return spark, os.path.abspath(folder)


@contextmanager
def stage(name: str) -> Iterator[None]:
    print(f"\n{name}", flush=True)
    start = time.perf_counter()
    yield
    SECONDS[name] = time.perf_counter() - start


def show(training: dict[str, Any], answers: pd.DataFrame, picture: str) -> int:
    from digits_plot import save_picture  # imports matplotlib

    save_picture(picture, training, answers)
    accuracy = (answers.digit == answers.label).mean()
    print(f"\n{'stage':<32}seconds")
    for name, elapsed in {**SECONDS, "together": sum(SECONDS.values())}.items():
        print(f"{name:<32}{elapsed:7.1f}")
    print(f"\ntest accuracy {accuracy:.4f}   {len(answers)} held-out digits, picture in {picture}")
    return 0 if accuracy >= 0.95 else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--remote", default=os.environ.get("SPARK_REMOTE"), help="sc://... (default: a local server)")
    parser.add_argument("--data", help="folder that the cluster can see, too (default: a temporary one)")
    parser.add_argument("--output", default="digits.png", help="the picture (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--local-mode", action="store_true", help="all processes in one Spark task")
    missing = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"cannot import {' and '.join(missing)} here: pip install scikit-learn matplotlib")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
