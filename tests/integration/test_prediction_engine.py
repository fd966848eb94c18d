"""The direct way from the inside: what its plans show, what it counts, every type that its encoders meet, and what it does when it is stopped."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sparkgap import predict_batch_udf
from sparkgap_server.local import LocalServer

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def sessions(predicting_session):
    """The direct way, and Spark's Python workers."""
    return [predicting_session(direct) for direct in (True, False)]


@pytest.fixture(scope="module")
def spark(sessions):
    return sessions[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Parquet table of 100 rows: id, and its half."""
    path = tmp_path_factory.mktemp("numbers")
    pq.write_table(pa.table({"id": np.arange(100), "half": np.arange(100) / 2}), path / "part.parquet")
    return str(path)


def make_double():
    return lambda x: x * 2.0


def make_text():
    """Predicts the text of what it sees in each row."""

    def predict(x):
        return np.array([repr(value) for value in x], dtype=object)

    return predict


def double(name=None, batch_size=10):
    return predict_batch_udf(make_double, return_type="double", batch_size=batch_size, name=name)


def explained(frame, capsys):
    capsys.readouterr()
    frame.explain()
    return capsys.readouterr().out


class TestPlan:
    def test_it_names_the_model(self, spark, folder, capsys):
        assert "Predict wind_turbine " in explained(
            spark.read.parquet(folder).select(double("wind_turbine")("id")), capsys
        )

    @pytest.mark.parametrize(
        ("query", "kept"),
        [
            (lambda frame, p: frame.select(p.alias("p")), []),
            (lambda frame, p: frame.withColumn("p", p).where("p > 3").select("p"), []),
            (lambda frame, p: frame.select("half", p.alias("p")), ["half"]),
            (lambda frame, p: frame.withColumn("p", p).where("p > half").select("p"), ["half"]),
            (lambda frame, p: frame.withColumn("p", p), ["id", "half"]),
        ],
    )
    def test_rows_wait_with_the_columns_that_are_read_afterwards(self, spark, folder, capsys, query, kept):
        shown = explained(query(spark.read.parquet(folder), double()("id")), capsys)
        line = next(each for each in shown.splitlines() if "Predict make_double" in each)
        waiting = line.split(": double")[1]
        assert [name for name in ("id", "half") if f"{name}#" in waiting] == kept


def counted(frame):
    """What the Predict node of the query counted that has been run."""
    nodes = frame.executionInfo.metrics._metrics
    return {metric.name: metric.value for node in nodes for metric in node.metrics if node.name.startswith("Predict")}


def test_a_query_counts_rows_batches_bytes_and_times(spark, folder):
    frame = spark.read.parquet(folder).select(double(batch_size=8)("id"))
    frame.collect()
    found = counted(frame)
    assert found["numOutputRows"] == 100
    assert found["batches"] == 13
    assert found["bytesSent"] == 800
    assert found["bytesReceived"] == 800
    assert min(found[name] for name in ("modelTime", "waitingTime", "loadTime")) > 0


@pytest.fixture(scope="module")
def strict():
    """A session of a server that fails a task which leaves execution memory behind, and takes batches of 4 MB."""
    conf = {"spark.unsafe.exceptionOnMemoryLeak": "true", "spark.sparkgap.batch.maxBytes": "4m"}
    with LocalServer("local[2]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        yield session
        session.stop()


def totals(session, rows, batch_size):
    """Predictions for rows of 8 kB."""
    wide = session.range(0, rows, 1, 1).select(F.array_repeat(F.col("id").cast("double"), 1000).alias("x"))
    udf = predict_batch_udf(make_total, return_type="double", batch_size=batch_size, input_tensor_shapes=[[1000]])
    return wide.select(udf("x"))


class TestMemory:
    def test_what_a_task_shares_with_the_model_is_execution_memory_and_given_back(self, strict):
        frame = totals(strict, 1000, 300)
        assert sum(row[0] for row in frame.collect()) == 1000 * sum(range(1000))
        assert 2 * 300 * 8000 <= counted(frame)["sharedMemory"] <= 2 * (4 << 20), "two batches of 2.4 MB"

    def test_also_by_a_query_that_is_not_read_to_its_end(self, strict):
        assert len(totals(strict, 5000, 10).limit(3).collect()) == 3

    def test_a_batch_larger_than_its_limit_is_refused_with_the_setting_named(self, strict):
        with pytest.raises(PySparkException, match=r"spark\.sparkgap\.batch\.maxBytes.*lower batch_size"):
            totals(strict, 1000, 600).collect()
        assert len(totals(strict, 1000, 500).collect()) == 1000


MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 123456)

EVERY_TYPE = {
    "booleans": pa.array([True, False, True]),
    "bytes": pa.array([1, -2, 127], pa.int8()),
    "shorts": pa.array([1, -2, 32767], pa.int16()),
    "floats": pa.array([0.5, -1.0, float("inf")], pa.float32()),
    "strings": pa.array(["", "é", "x" * 3000]),
    "binaries": pa.array([b"", b"\x00\xff", b"y" * 3000], pa.binary()),
    "dates": pa.array([dt.date(1969, 1, 1), dt.date(2024, 2, 29), dt.date(9999, 1, 1)]),
    "timestamps": pa.array([MOMENT, MOMENT.replace(year=1969), MOMENT], pa.timestamp("us", "UTC")),
    "local timestamps": pa.array([MOMENT, MOMENT.replace(year=1969), MOMENT], pa.timestamp("us")),
    "decimals": pa.array([decimal.Decimal("1.50"), decimal.Decimal("-3.25"), decimal.Decimal("0.00")]),
    "wide decimals": pa.array([decimal.Decimal(10**20), decimal.Decimal(-(10**25)), decimal.Decimal(0)], pa.decimal128(38, 0)),
    "maps": pa.array([[("a", 1)], [], [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int32())),
    "arrays of strings": pa.array([["a", "b"], [], ["c"]]),
    "arrays of booleans": pa.array([[True], [], [False, True]]),
    "arrays of decimals": pa.array([[decimal.Decimal("1.5")], [], [decimal.Decimal("2.5")]]),
    "structs in arrays": pa.array([[{"a": 1, "b": "x"}], [], [{"a": 2, "b": None}]]),
}  # fmt: skip


def with_nulls(column, where):
    """The column four times over, null where the pattern says so."""
    values = column.to_pylist() * 4
    return pa.array([None if where(index) else value for index, value in enumerate(values)], column.type)


@pytest.mark.parametrize(
    "where",
    [lambda _: False, lambda index: index in (0, 7), lambda _: True],
    ids=["full", "holes", "nothing but nulls"],
)
@pytest.mark.parametrize("column", EVERY_TYPE.values(), ids=EVERY_TYPE.keys())
def test_the_model_sees_every_type_as_it_does_through_sparks_python_workers(sessions, tmp_path, column, where):
    table = pa.table({"id": np.arange(12), "x": with_nulls(column, where)})
    pq.write_table(table, tmp_path / "part.parquet")
    # Inputs of array type without a shape need a second argument; then each row is an object.
    seen = predict_batch_udf(make_pair_text, return_type="string", batch_size=5, input_tensor_shapes=[None, None])
    found = []
    for session in sessions:
        found.append(rows_or_error(session.read.parquet(str(tmp_path)), seen))
    assert found[0] == found[1]


def make_pair_text():
    def predict(number, x):
        return np.array([f"{x.dtype} {value!r}" for value in x], dtype=object)

    return predict


def rows_or_error(frame, udf):
    try:
        return sorted((row["id"], row["p"]) for row in frame.select("id", udf("id", "x").alias("p")).collect())
    except PySparkException as error:  # structs in arrays are refused, by either way with the same words
        return next(line for line in str(error).splitlines() if "ValueError: " in line).split("ValueError: ")[1]


def test_a_partition_column_is_a_column_like_others(sessions, tmp_path):
    for name in ("a", "b"):
        part = tmp_path / f"name={name}"
        part.mkdir()
        pq.write_table(pa.table({"id": np.arange(10)}), part / "part.parquet")
    seen = predict_batch_udf(make_text, return_type="string", batch_size=4)
    for session in sessions:
        frame = session.read.parquet(str(tmp_path)).select("name", seen("name").alias("p"))
        assert {(row["name"], row["p"]) for row in frame.collect()} == {("a", "'a'"), ("b", "'b'")}


def test_strings_with_a_dictionary(sessions, tmp_path):
    values = [f"word {index % 7}" if index % 5 else None for index in range(10_000)]
    pq.write_table(pa.table({"x": values, "id": np.arange(10_000)}), tmp_path / "p.parquet", use_dictionary=["x"])
    seen = predict_batch_udf(make_text, return_type="string", batch_size=1000)
    for session in sessions:
        rows = session.read.parquet(str(tmp_path)).select("id", seen("x").alias("p")).collect()
        assert [row["p"] for row in sorted(rows)] == [repr(value) for value in values]


def test_a_cancelled_query_lets_go_of_the_model_which_serves_the_next(spark, tmp_path, eventually):
    journal = tmp_path / "journal"

    def make_slow():
        with open(journal, "a") as file:
            file.write(f"load {os.getpid()}\n")

        def predict(x):
            with open(journal, "a") as file:
                file.write("batch\n")
            time.sleep(0.2 if len(x) > 1 else 0)
            return x * 1.0

        return predict

    slow = predict_batch_udf(make_slow, return_type="double", batch_size=4)
    refused = []

    def run():
        try:
            spark.range(0, 4000, 1, 1).select(slow("id")).collect()
        except PySparkException as error:
            refused.append(error)

    query = threading.Thread(target=run)
    query.start()
    eventually(lambda: journal.exists() and "batch" in journal.read_text(), 30, "the model predicts")
    spark.interruptAll()
    query.join(20)
    assert refused
    assert "CANCELED" in str(refused[0])
    batches = journal.read_text().count("batch")
    time.sleep(1)
    assert journal.read_text().count("batch") <= batches + 2, "the model goes on for nobody"
    assert spark.range(1).select(slow("id")).collect() == [(0.0,)]
    assert journal.read_text().count("load") == 1


def make_total():
    return lambda x: x.sum(axis=1)
