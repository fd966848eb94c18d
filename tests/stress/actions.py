"""What stress.py does again and again: each action is drawn from a seeded stream and checks its own result.

What ranks and models run stands here too, and travels by value.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from pyspark.sql import SparkSession
from sparkgap import RunCancelledError, TorchDistributor, TrainingError, predict_batch_udf

MIB = 1 << 20


class Wrong(AssertionError):
    """An action had another result than it should have."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


def gang(spark: SparkSession, ranks: int, **options: Any) -> TorchDistributor:
    return TorchDistributor(ranks, use_gpu=False, spark=spark, **options)


# ---- Runs ----


def returns_bytes(spark: SparkSession, draw: random.Random) -> None:
    """A value of 0 to 20 MiB, mostly small, arrives as it was."""
    size = draw.choice([0, 1, 1000, MIB, 10 * MIB, draw.randrange(20 * MIB)])
    seed = draw.randrange(1 << 30)

    def main_fn() -> tuple[bytes, str]:
        value = random.Random(seed).randbytes(size)
        return value, hashlib.sha256(value).hexdigest()

    value, digest = gang(spark, draw.choice([1, 2])).run(main_fn)
    expect(
        len(value) == size and hashlib.sha256(value).hexdigest() == digest, f"{len(value)} bytes of {size}, or others"
    )


def returns_of_all(spark: SparkSession, draw: random.Random) -> None:
    """Each rank's value arrives, in their order."""
    ranks = draw.choice([2, 3, 4])
    size = draw.randrange(MIB)

    def main_fn() -> tuple[int, int]:
        import os

        return int(os.environ["RANK"]), len(b"x" * size)

    values = gang(spark, ranks, results="all", local_mode=draw.random() < 0.5).run(main_fn)
    expect(values == [(rank, size) for rank in range(ranks)], f"values {values}")


def reduces(spark: SparkSession, draw: random.Random) -> None:
    """An all-reduce over gloo."""

    def main_fn() -> float:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.ones(1) * (dist.get_rank() + 1)
        dist.all_reduce(total)
        dist.destroy_process_group()
        return total.item()

    expect(gang(spark, 2, local_mode=draw.random() < 0.5).run(main_fn) == 3.0, "sum over two ranks")


def fails(spark: SparkSession, draw: random.Random) -> None:
    """The failing rank's own exception arrives, in one of several ways to fail."""
    how = draw.choice(["raise", "exit", "kill", "abort", "stubborn"])
    culprit = draw.randrange(2)

    def main_fn() -> None:
        import os
        import signal
        import sys
        import time

        if how == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if int(os.environ["RANK"]) != culprit:
            time.sleep(60)
        if how == "exit":
            sys.exit(7)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "abort":
            os.abort()
        raise ValueError("wrong on purpose")

    try:
        gang(spark, 2, local_mode=draw.random() < 0.5).run(main_fn)
    except TrainingError as error:
        said = {"exit": "status 7", "kill": "signal 9", "abort": "signal 6"}.get(how, "ValueError: wrong on purpose")
        expect(f"rank {culprit} " in str(error) and said in str(error), f"{how} of rank {culprit} became: {error}")
    else:
        raise Wrong(f"{how} of rank {culprit} became a success")


def is_cancelled(spark: SparkSession, draw: random.Random) -> None:
    """A cancel at any moment, from before the first fork to after the end."""
    pause = draw.choice([0, 0.01, 0.05, 0.1, 0.2, 0.4])

    def main_fn() -> str:
        import time

        time.sleep(0.3)
        return "done"

    run = gang(spark, draw.choice([1, 2])).submit(main_fn)
    time.sleep(pause)
    run.cancel()
    try:
        value = run.result(timeout=60)
    except RunCancelledError:
        return
    expect(value == "done", f"a run that was faster than its cancel returned {value!r}")


def prints(spark: SparkSession, draw: random.Random) -> None:
    """All lines arrive, in their order, or are counted."""
    lines = draw.choice([0, 1, 1000, 20_000])

    def main_fn() -> None:
        for number in range(lines):
            print("line", number)

    run = gang(spark, 1).submit(main_fn)
    run.result(timeout=120)
    logs = run.logs()
    numbers = [int(line.text.split()[1]) for line in logs if line.text.startswith("line ")]
    expect(numbers == sorted(numbers), "lines in another order")
    expect(len(numbers) + logs.dropped == lines, f"{len(numbers)} lines and {logs.dropped} dropped of {lines}")


# ---- Predictions ----


def predicts(spark: SparkSession, draw: random.Random) -> None:
    """Numbers through a model that has been loaded before, or has not."""
    rows, factor = draw.choice([1, 100, 20_000]), float(draw.randrange(1, 6))

    def make_predict_fn() -> Callable[[Any], Any]:
        return lambda numbers: numbers * factor

    udf = predict_batch_udf(make_predict_fn, return_type="double", batch_size=draw.choice([1, 10, 1000]))
    frame = spark.range(rows).selectExpr("cast(id as double) as id").select("id", udf("id").alias("p"))
    total = frame.selectExpr("sum(p)").first()[0]
    expect(total == factor * rows * (rows - 1) / 2, f"the sum of {rows} predictions is {total}")


def loses_its_host(spark: SparkSession, draw: random.Random) -> None:
    """A model that takes its process along is an error of that query alone."""
    when = draw.choice(["load", "predict"])
    number = draw.randrange(1 << 40)

    def make_predict_fn() -> Callable[[Any], Any]:
        import os

        if when == "load":
            os._exit(number % 2)

        def predict(numbers: Any) -> Any:
            os._exit(3)

        return predict

    udf = predict_batch_udf(make_predict_fn, return_type="double", batch_size=10)
    try:
        spark.range(10).select(udf("id").alias("p")).collect()
    except Exception as error:
        expect("the model host of" in str(error), f"an exit at {when} became: {error}")
    else:
        raise Wrong("a model without a process has predicted")


def raises(spark: SparkSession, draw: random.Random) -> None:
    """The model's own exception arrives."""

    def make_predict_fn() -> Callable[[Any], Any]:
        def predict(numbers: Any) -> Any:
            raise ZeroDivisionError("on purpose")

        return predict

    udf = predict_batch_udf(make_predict_fn, return_type="double", batch_size=draw.choice([1, 10]))
    try:
        spark.range(10).select(udf("id").alias("p")).collect()
    except Exception as error:
        expect("ZeroDivisionError: on purpose" in str(error), f"a ZeroDivisionError became: {error}")
    else:
        raise Wrong("a model that raises has predicted")


RUNS = {returns_bytes: 4, returns_of_all: 2, reduces: 2, fails: 3, is_cancelled: 2, prints: 1}
PREDICTIONS = {predicts: 4, raises: 1, loses_its_host: 1}

Action = Callable[[SparkSession, random.Random], None]


def drawn(draw: random.Random, runs: bool) -> Action:
    """One of the kinds, by its weight."""
    kinds = RUNS if runs else PREDICTIONS
    return draw.choices(list(kinds), list(kinds.values()))[0]


def by_value() -> None:
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
