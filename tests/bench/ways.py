"""The ways of predicting a column that inference.py and growth.py time in turn, and how they are timed."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import prediction_models
import pyarrow as pa
from pyspark import cloudpickle
from pyspark.ml.functions import predict_batch_udf as pyspark_predict
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType
from sparkgap import predict_batch_udf as sparkgap_predict
from sparkgap_server.local import LocalServer

cloudpickle.register_pickle_by_value(prediction_models)

SPARKGAP, WORKERS, NOTHING, PYSPARK = (
    "sparkgap",
    "sparkgap, in Python workers",
    "Arrow function, computes nothing",
    "pyspark",
)


@dataclass(frozen=True)
class Query:
    """A prediction column over the Parquet table in a folder."""

    table: str
    columns: list[str]
    make_predict_fn: Callable[[], Callable[..., Any]]
    return_type: str
    batch_size: int = 1024
    shapes: list[list[int]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sessions:
    """On one server: for the direct way, and for the way through Spark's Python workers."""

    direct: SparkSession
    workers: SparkSession


@contextmanager
def sessions() -> Iterator[Sessions]:
    """A server of two cores of its own."""
    with ExitStack() as cleanup:
        server = cleanup.enter_context(LocalServer("local[2]"))
        made = []
        for direct in ("true", "false"):
            spark = SparkSession.builder.remote(server.url).create()
            cleanup.callback(spark.stop)
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 10000)
            spark.conf.set("spark.sparkgap.predict.direct", direct)
            made.append(spark)
        yield Sessions(*made)


def predict(spark: SparkSession, query: Query) -> Callable[[], None]:
    """Our way."""
    function = sparkgap_predict(
        query.make_predict_fn, return_type=query.return_type, batch_size=query.batch_size,
        input_tensor_shapes=query.shapes, **query.options,
    )  # fmt: skip
    return _run(spark, query, function)


def predict_by_pyspark(spark: SparkSession, query: Query) -> Callable[[], None]:
    """The peer's."""
    function = pyspark_predict(
        query.make_predict_fn, return_type=DataType.fromDDL(query.return_type), batch_size=query.batch_size,
        input_tensor_shapes=query.shapes,
    )  # fmt: skip
    return _run(spark, query, function)


def nothing(spark: SparkSession, query: Query) -> Callable[[], None]:
    """The least that any way through Spark's Python workers costs."""

    @F.arrow_udf("boolean")
    def function(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        import pyarrow

        for batch in batches:
            yield pyarrow.nulls(len(batch), pyarrow.bool_())

    return _run(spark, query, function)


def _run(spark: SparkSession, query: Query, function: Any) -> Callable[[], None]:
    """Read the table and write the predictions to nowhere."""
    frame: DataFrame = spark.read.parquet(query.table)
    predicted = frame.select(function(*query.columns).alias("p"))
    return lambda: predicted.write.format("noop").mode("overwrite").save()


def time_in_turn(what: str, ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, all ways in turn; the first round loads models and compiles, and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
        print(f"{what}: round {number} of {rounds}", file=sys.stderr)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """One a way."""
    return {name: statistics.median(times) for name, times in seconds.items()}
