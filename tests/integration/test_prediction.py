"""Prediction as its user sees it, on a real server: what goes into the model and comes out, how often it is loaded, and what the column can do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from pyspark import TaskContext, cloudpickle
from pyspark.errors import PythonException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DoubleType, FloatType, IntegerType, LongType, StructField, StructType
from sparkgap import predict_batch_udf

# The model hosts cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def spark(either_way):
    return either_way


@pytest.fixture(scope="module")
def tensors(spark):
    """Ten rows: x is [id, id + 0.5, -id], y is [10 id, 1], and the scalars id and half."""
    rows = [(i, i / 2, [float(i), i + 0.5, float(-i)], [10.0 * i, 1.0]) for i in range(10)]
    return (
        spark.createDataFrame(rows, "id long, half double, x array<float>, y array<float>")
        .repartition(1)
        .sortWithinPartitions("id")
    )


class Journal:
    """A file in which the models of a test note what they do; its path makes them models of this test alone."""

    def __init__(self, path):
        self._path = str(path)

    def note(self, what, number):
        with open(self._path, "a") as file:
            file.write(f"{what} {number}\n")

    def numbers(self, what):
        path = Path(self._path)
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == what]


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def process_id_model(journal):
    """A model that predicts the id of its process, and notes each load and the size of each batch."""

    def make_process_id():
        journal.note("load", os.getpid())

        def predict(x):
            journal.note("batch", len(x))
            return np.full(len(x), os.getpid())

        return predict

    return make_process_id


def make_plus_one():
    return lambda x: x + 1.0


def make_batch_length():
    return lambda x: np.full(len(x), len(x))


def predicting(function, return_type="double", *, batch_size=4, shapes=None):
    return predict_batch_udf(function, return_type=return_type, batch_size=batch_size, input_tensor_shapes=shapes)


def column(frame):
    """Values of a frame with one column."""
    return [row[0] for row in frame.collect()]


def hosts_of(frame):
    """Process ids in a frame with one column."""
    return set(column(frame))


@contextmanager
def another_session(url):
    session = SparkSession.builder.remote(url).create()
    try:
        yield session
    finally:
        session.stop()


class TestInputs:
    def test_one_tensor_column_arrives_in_its_shape(self, tensors):
        def make():
            def predict(x):
                assert x.dtype == np.float32
                assert x.shape[1:] == (3, 1)
                return x[:, 1, 0]

            return predict

        assert column(tensors.select(predicting(make, "float", shapes=[[3, 1]])("x"))) == [i + 0.5 for i in range(10)]

    def test_several_tensor_columns_are_several_arguments(self, tensors):
        def make():
            def predict(x, y):
                assert (x.shape[1:], y.shape[1:]) == ((3,), (2, 1))
                return x[:, 0] + y[:, 0, 0]

            return predict

        predicted = column(tensors.select(predicting(make, "float", shapes=[[3], [2, 1]])("x", "y")))
        assert predicted == [11.0 * i for i in range(10)]

    def test_scalar_columns_are_one_dimensional_arguments(self, tensors):
        def make():
            def predict(number, half):
                assert (number.shape, number.dtype, half.dtype) == (half.shape, np.int64, np.float64)
                return number + half

            return predict

        assert column(tensors.select(predicting(make)("id", F.col("half")))) == [1.5 * i for i in range(10)]

    def test_tensors_and_scalars_mix(self, tensors):
        def make():
            def predict(number, x, half):
                assert (number.ndim, x.shape[1:], half.ndim) == (1, (3,), 1)
                return number + x.sum(axis=1) + half

            return predict

        expected = [i + (i + 0.5) + i / 2 for i in range(10)]
        assert column(tensors.select(predicting(make, shapes=[None, [3], None])("id", "x", "half"))) == expected
        assert column(tensors.select(predicting(make, shapes={1: [3]})("id", "x", "half"))) == expected

    def test_array_combines_scalars_into_a_tensor(self, tensors):
        def make():
            def predict(x):
                assert x.shape[1:] == (2,)
                return x[:, 0] - x[:, 1]

            return predict

        combined = F.array(F.col("half"), F.col("id").cast("double"))
        assert column(tensors.select(predicting(make, shapes=[[2]])(combined))) == [-i / 2 for i in range(10)]

    def test_the_fields_of_a_struct_are_arguments(self, tensors):
        def make():
            return lambda x, half: x[:, 1] - half

        pair = F.struct("x", "half")
        assert column(tensors.select(predicting(make, shapes=[[3], None])(pair))) == [i / 2 + 0.5 for i in range(10)]

    def test_a_struct_of_scalars_is_the_table_of_a_models_only_argument(self, tensors):
        def make():
            def predict(table):
                assert table.shape[1:] == (2,)
                return table.sum(axis=1)

            return predict

        assert column(tensors.select(predicting(make)(F.struct("id", "half")))) == [1.5 * i for i in range(10)]

    def test_a_batch_may_outgrow_the_memory_that_it_first_gets(self, spark):
        def make():
            return lambda x: x.sum(axis=1)

        wide = spark.range(0, 3000, 1, 1).select(F.array_repeat(F.col("id").cast("float"), 784).alias("x"))
        predicted = column(wide.select(predicting(make, "float", batch_size=2000, shapes=[[784]])("x")))
        assert predicted == [784.0 * i for i in range(3000)]


class TestOutputs:
    @pytest.mark.parametrize("return_type", ["array<float>", ArrayType(FloatType())])
    def test_an_array(self, tensors, return_type):
        def make():
            return lambda x: np.stack([x, -x], axis=1)

        assert column(tensors.select(predicting(make, return_type)("id"))) == [[i, -i] for i in range(10)]

    @pytest.mark.parametrize(
        "return_type",
        [
            "label int, scores array<float>",
            "struct<label:int,scores:array<float>>",
            StructType([StructField("label", IntegerType()), StructField("scores", ArrayType(FloatType()))]),
        ],
    )
    def test_a_struct_from_a_dict_of_arrays(self, tensors, return_type):
        def make():
            return lambda x: {"label": x * 2, "scores": np.stack([x, x + 0.5], axis=1)}

        rows = column(tensors.select(predicting(make, return_type)("id")))
        assert [row.asDict() for row in rows] == [{"label": 2 * i, "scores": [i, i + 0.5]} for i in range(10)]

    def test_a_struct_from_a_list_of_dicts(self, tensors):
        def make():
            return lambda x: [{"label": int(i) * 2, "scores": np.arange(i % 3)} for i in x]

        rows = column(tensors.select(predicting(make, "label int, scores array<float>")("id")))
        assert [row.label for row in rows] == [2 * i for i in range(10)]
        assert [row.scores for row in rows] == [[0.0, 1.0][: i % 3] for i in range(10)]

    @pytest.mark.parametrize(
        ("return_type", "expected"), [("bigint", 3), (LongType(), 3), ("double", 3.0), (DoubleType(), 3.0)]
    )
    def test_a_scalar_of_the_declared_type(self, tensors, return_type, expected):
        def make():
            return lambda x: x * 1.0

        [value] = column(tensors.where("id = 3").select(predicting(make, return_type)("id")))
        assert (value, type(value)) == (expected, type(expected))

    def test_predictions_may_be_larger_than_their_batch(self, spark):
        def make():
            return lambda x: np.repeat(x[:, None], 1000, axis=1)

        frame = spark.range(0, 600, 1, 1).select(predicting(make, "array<double>", batch_size=500)("id").alias("p"))
        assert column(frame.select(F.array_max("p") * 1000 + F.size("p"))) == [1000.0 * i + 1000 for i in range(600)]

    def test_predictions_of_one_model_do_not_overwrite_each_other_where_it_returns_its_own_memory(self, spark):
        def make():
            memory = np.empty(8)

            def predict(x):
                memory[: len(x)] = x
                return memory[: len(x)]

            return predict

        frame = spark.range(0, 4000, 1, 4)
        assert sorted(column(frame.select(predicting(make, batch_size=8)("id")))) == list(range(4000))

    def test_the_column_is_named_after_the_function_and_its_arguments(self, tensors):
        assert tensors.select(predicting(make_plus_one)("id")).columns == ["make_plus_one(id)"]


class TestBatches:
    @pytest.fixture(autouse=True)
    def small_arrow_batches(self, spark):
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 7)
        yield
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")

    @pytest.mark.parametrize(
        ("batch_size", "expected"),
        [(16, [16] * 6 + [4]), (7, [7] * 14 + [2]), (3, [3] * 33 + [1]), (50, [50, 50]), (1000, [100]), (1, [1] * 100)],
    )
    def test_a_batch_has_exactly_its_size_across_the_borders_of_arrow_batches(
        self, spark, journal, batch_size, expected
    ):
        udf = predicting(process_id_model(journal), "bigint", batch_size=batch_size)
        assert len(column(spark.range(0, 100, 1, 1).select(udf("id")))) == 100
        assert journal.numbers("batch") == expected

    def test_every_row_gets_its_own_prediction(self, spark):
        udf = predicting(make_plus_one, batch_size=5)
        rows = spark.range(0, 100, 1, 3).select("id", udf("id").alias("p")).collect()
        assert sorted((row.id, row.p) for row in rows) == [(i, i + 1.0) for i in range(100)]

    def test_the_last_batch_of_each_partition_has_the_rest(self, spark):
        lengths = column(spark.range(0, 30, 1, 3).select(predicting(make_batch_length, "int", batch_size=6)("id")))
        assert Counter(lengths) == {6: 18, 4: 12}


def seeded_network():
    import torch

    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10),
    ).eval()  # fmt: skip


def make_network():
    import torch

    network = seeded_network()

    def predict(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return predict


def make_thread_count():
    import torch

    return lambda x: np.full(len(x), torch.get_num_threads())


@contextmanager
def torch_threads(count):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TestAgainstPlainTorch:
    def test_a_predicted_column_equals_the_same_model_applied_with_plain_torch_bit_for_bit(self, spark):
        images = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
        frame = spark.createDataFrame(
            [(i, image.tolist()) for i, image in enumerate(images)], "id long, image array<float>"
        )
        ordered = frame.repartition(1).sortWithinPartitions("id")
        udf = predicting(make_network, "array<float>", batch_size=16, shapes=[[1, 8, 8]])
        rows = ordered.select("id", udf("image").alias("logits")).collect()
        predicted = np.array([row.logits for row in sorted(rows)], dtype=np.float32)

        # Kernels split their sums by batch and by thread, so both have to be the host's for equality in the last bit.
        [threads] = hosts_of(spark.range(1).select(predicting(make_thread_count, "int")("id")))
        with torch_threads(threads):
            plain = make_network()
            expected = np.concatenate([plain(images[i : i + 16].reshape(-1, 1, 8, 8)) for i in range(0, 100, 16)])
        assert np.ptp(expected, axis=0).min() > 0.1  # the rows differ, so that a mix-up would show
        assert np.array_equal(predicted.view(np.uint32), expected.view(np.uint32))


class TestOneModel:
    """The id of the host's process tells who predicted; the journal tells how often the model was loaded."""

    def test_four_tasks_at_the_same_time_share_it(self, spark, journal):
        def make():
            journal.note("load", os.getpid())
            deadline = time.monotonic() + 60
            while threading.active_count() < 6:  # this one, one at the door, and one for each of four connections
                if time.monotonic() > deadline:
                    raise TimeoutError(f"four tasks did not connect within 60 s, {threading.active_count() - 2} did")
                time.sleep(0.01)
            return lambda x: np.full(len(x), os.getpid())

        [host] = hosts_of(spark.range(0, 8, 1, 4).select(predicting(make, "bigint")("id")))
        assert journal.numbers("load") == [host]

    def test_two_queries_share_it(self, spark, journal):
        udf = predicting(process_id_model(journal), "bigint")
        first, second = (hosts_of(spark.range(0, 10, 1, 2).select(udf("id"))) for _ in range(2))
        assert [first] == [second] == [set(journal.numbers("load"))]
        assert len(journal.numbers("load")) == 1

    def test_two_udfs_of_one_function_share_it_whatever_their_types_and_batches(self, spark, journal):
        model = process_id_model(journal)
        spark.range(10).select(predicting(model, "bigint")("id")).collect()
        [as_double] = column(spark.range(1).select(predicting(model, "double", batch_size=9)("id")))
        assert journal.numbers("load") == [as_double]

    def test_a_new_session_of_the_same_user_shares_it(self, spark, sparkgap_server, journal):
        here = hosts_of(spark.range(3).select(predicting(process_id_model(journal), "bigint")("id")))
        with another_session(sparkgap_server.url) as other:
            there = hosts_of(other.range(3).select(predicting(process_id_model(journal), "bigint")("id")))
        assert [here] == [there] == [set(journal.numbers("load"))]
        assert len(journal.numbers("load")) == 1

    def test_fresh_processes_that_run_the_same_script_share_it(self, sparkgap_server, tmp_path, journal):
        script = tmp_path / "client.py"
        script.write_text(CLIENT_SCRIPT)
        hosts = [run_client(script, sparkgap_server.url, str(tmp_path / "journal"), seed) for seed in ("1", "2")]
        assert hosts[0] == hosts[1]
        assert journal.numbers("load") == [hosts[0]]

    @pytest.mark.parametrize("packed", ["brought_along.py", "package.zip"])
    def test_sessions_that_brought_modules_of_their_own_share_nothing(self, sparkgap_server, tmp_path, journal, packed):
        def make():
            import brought_along

            journal.note("load", os.getpid())
            return lambda x: x * brought_along.FACTOR

        predicted = []
        for factor in (2.0, 3.0):
            artifact = tmp_path / str(factor) / packed
            artifact.parent.mkdir()
            if packed.endswith(".zip"):
                with zipfile.ZipFile(artifact, "w") as archive:
                    archive.writestr("brought_along.py", f"FACTOR = {factor}\n")
            else:
                artifact.write_text(f"FACTOR = {factor}\n")
            with another_session(sparkgap_server.url) as session:
                session.addArtifacts(str(artifact), pyfile=True)
                predicted.append(column(session.range(1, 3, 1, 1).select(predicting(make)("id"))))
        assert predicted == [[2.0, 4.0], [3.0, 6.0]]

    def test_a_function_with_another_content_is_another_model(self, spark, journal):
        def model(weight):
            def make():
                journal.note("load", os.getpid())
                return lambda x: np.full(len(x), os.getpid()) + 0 * weight

            return make

        hosts = [hosts_of(spark.range(3).select(predicting(model(weight), "bigint")("id"))) for weight in (1, 2, 1)]
        assert hosts[0] == hosts[2] != hosts[1]
        assert len(journal.numbers("load")) == 2

    def test_another_user_gets_one_of_their_own(self, spark, sparkgap_server, journal):
        mine = hosts_of(spark.range(3).select(predicting(process_id_model(journal), "bigint")("id")))
        with another_session(f"{sparkgap_server.url};user_id=eve") as eve:
            theirs = hosts_of(eve.range(3).select(predicting(process_id_model(journal), "bigint")("id")))
        assert mine.isdisjoint(theirs)
        assert sorted(journal.numbers("load")) == sorted(mine | theirs)

    @pytest.mark.parametrize("partitions", [0, 4])
    def test_without_rows_nothing_is_loaded(self, spark, journal, partitions):
        empty = spark.range(0, 40, 1, partitions).where("id < 0") if partitions else spark.range(0)
        rows = empty.select(predicting(process_id_model(journal), "bigint")("id")).collect()
        assert (rows, journal.numbers("load")) == ([], [])

    def test_empty_partitions_beside_others_do_no_harm(self, spark, journal):
        frame = spark.range(0, 40, 1, 4).where("id >= 25")
        assert len(column(frame.select(predicting(process_id_model(journal), "bigint")("id")))) == 15
        assert len(journal.numbers("load")) == 1


CLIENT_SCRIPT = """
import os, sys
import numpy as np
from pyspark.sql import SparkSession
from sparkgap import predict_batch_udf

class Net:
    kinds = {"conv", "mlp", "attention"}
    def load(self, journal):
        with open(journal, "a") as file:
            file.write(f"load {os.getpid()}\\n")

def make_predict_fn():
    Net().load(JOURNAL)
    return lambda x: np.full(len(x), os.getpid()) if "mlp" in {"conv", "mlp"} else x

URL, JOURNAL = sys.argv[1:]
spark = SparkSession.builder.remote(URL).getOrCreate()
udf = predict_batch_udf(make_predict_fn, return_type="bigint", batch_size=2)
print(*{row[0] for row in spark.range(4).select(udf("id")).collect()})
spark.stop()
"""


def run_client(script, url, journal, seed):
    done = subprocess.run(
        [sys.executable, str(script), url, journal],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


class TestInQueries:
    """Spark may move, copy and drop expressions; a prediction stays what it is, and no row is predicted twice."""

    @pytest.fixture
    def counted(self, journal):
        """id + 1, with a note of each batch's length."""

        def make():
            def predict(x):
                journal.note("batch", len(x))
                return x + 1.0

            return predict

        return predicting(make)

    def predicted_rows(self, journal):
        return sum(journal.numbers("batch"))

    def test_where_on_a_prediction(self, spark, counted):
        assert sorted(column(spark.range(0, 10, 1, 2).where(counted("id") > 7.5))) == [7, 8, 9]

    def test_a_filter_on_a_predicted_column_does_not_predict_twice(self, spark, counted, journal):
        rows = spark.range(0, 40, 1, 2).withColumn("p", counted("id")).where("p > 30").collect()
        assert sorted(row.p for row in rows) == list(range(31, 41))
        assert self.predicted_rows(journal) == 40

    def test_a_predicted_column_used_three_times_is_predicted_once(self, spark, counted, journal):
        frame = spark.range(0, 20, 1, 2).withColumn("p", counted("id"))
        assert sorted(column(frame.select(F.col("p") + F.col("p") * 2).where("p > 0"))) == [
            3.0 * i for i in range(1, 21)
        ]
        assert self.predicted_rows(journal) == 20

    def test_a_column_that_nobody_wants_is_not_predicted(self, spark, counted, journal):
        assert len(spark.range(0, 20, 1, 2).withColumn("p", counted("id")).select("id").collect()) == 20
        assert self.predicted_rows(journal) == 0

    def test_limit(self, spark, counted):
        rows = spark.range(0, 100, 1, 2).withColumn("p", counted("id")).limit(5).collect()
        assert [row.p for row in rows] == [row.id + 1 for row in rows]
        assert len(rows) == 5

    def test_a_cached_column_is_predicted_once(self, spark, counted, journal):
        cached = spark.range(0, 30, 1, 2).withColumn("p", counted("id")).cache()
        try:
            assert cached.count() == 30
            assert cached.agg(F.sum("p")).collect() == [(sum(range(1, 31)),)]
            assert self.predicted_rows(journal) == 30
        finally:
            cached.unpersist(blocking=True)

    def test_a_join_of_predicted_frames(self, spark, counted, journal):
        left = spark.range(0, 20, 1, 2).withColumn("p", counted("id"))
        right = spark.range(10, 30, 1, 3).withColumn("q", counted("id"))
        rows = left.join(right, F.col("p") == F.col("q")).select("p").collect()
        assert sorted(row.p for row in rows) == list(range(11, 21))
        assert self.predicted_rows(journal) == 40

    def test_an_aggregation_over_a_predicted_column(self, spark, counted, journal):
        frame = spark.range(0, 30, 1, 3).withColumn("p", counted("id"))
        sums = frame.groupBy((F.col("id") % 3).alias("k")).agg(F.sum("p").alias("s")).collect()
        assert {row.k: row.s for row in sums} == {k: sum(i + 1.0 for i in range(k, 30, 3)) for k in range(3)}
        assert self.predicted_rows(journal) == 30

    def test_grouping_and_sorting_by_a_prediction(self, spark, counted):
        groups = spark.range(0, 6, 1, 2).groupBy(counted(F.col("id") % 2).alias("p")).count().collect()
        assert {row.p: row["count"] for row in groups} == {1.0: 3, 2.0: 3}
        assert column(spark.range(0, 6, 1, 2).orderBy(counted("id").desc())) == [5, 4, 3, 2, 1, 0]

    def test_two_predictions_in_one_select(self, spark, counted, journal):
        def make_twice():
            return lambda x: x * 2.0

        frame = spark.range(0, 20, 1, 2)
        rows = frame.select(
            "id",
            counted("id").alias("p"),
            predicting(make_twice, batch_size=3)("id").alias("q"),
            (counted("id") + 1).alias("r"),
        )
        assert sorted(map(tuple, rows.collect())) == [(i, i + 1.0, i * 2.0, i + 2.0) for i in range(20)]

    def test_a_prediction_of_a_prediction(self, spark, counted, journal):
        nested = counted(counted(counted("id") * 10))
        assert sorted(column(spark.range(0, 20, 1, 2).select(nested))) == [10.0 * (i + 1) + 2 for i in range(20)]
        assert self.predicted_rows(journal) == 60

    def test_a_prediction_inside_other_expressions(self, spark, counted):
        column_of = F.when(F.col("id") > 3, counted("id") * 10).otherwise(F.lit(0.0)).alias("x")
        assert column(spark.range(0, 6, 1, 1).select(column_of)) == [0, 0, 0, 0, 50, 60]

    def test_a_view_in_sql(self, spark, counted):
        spark.range(0, 5, 1, 1).withColumn("p", counted("id")).createOrReplaceTempView("predicted")
        assert spark.sql("SELECT max(p) AS m FROM predicted").collect() == [(5.0,)]

    def test_a_union(self, spark, counted, journal):
        half = spark.range(0, 5, 1, 1).select(counted("id").alias("p"))
        assert sorted(column(half.union(half))) == sorted([1.0, 2.0, 3.0, 4.0, 5.0] * 2)
        assert self.predicted_rows(journal) == 10


def memory_files(host):
    """Shared memories that a host holds: one a connection."""
    folder = Path(f"/proc/{host}/fd")
    return sum("sparkgap-batches" in target for target in map(link_target, folder.iterdir()))


def link_target(link):
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # closed meanwhile


def threads(host):
    return len(list(Path(f"/proc/{host}/task").iterdir()))


class TestHosts:
    def test_a_host_that_died_between_two_queries_is_replaced(self, spark, journal):
        udf = predicting(process_id_model(journal), "bigint")
        [first] = hosts_of(spark.range(0, 10, 1, 2).select(udf("id")))
        os.kill(first, signal.SIGKILL)
        [second] = hosts_of(spark.range(0, 10, 1, 2).select(udf("id")))
        assert first != second
        assert journal.numbers("load") == [first, second]

    def test_a_host_that_dies_during_a_query_is_an_error_that_says_so_and_the_next_query_works(
        self, spark, tmp_path, journal
    ):
        deadly = tmp_path / "deadly"
        deadly.touch()

        def make_mortal():
            journal.note("load", os.getpid())

            def predict(x):
                if 5 in x and deadly.exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                return x + 0.0

            return predict

        frame = spark.range(0, 10, 1, 1).select(predicting(make_mortal, batch_size=2)("id"))
        with pytest.raises(PythonException) as error:
            frame.collect()
        assert (
            "HostDied: the model host of make_mortal died while it predicted. Was it killed for memory? Hosts count against "
            "spark.executor.memoryOverhead; their errors are in the executor's stderr"
        ) in str(error.value)
        deadly.unlink()
        assert column(frame) == list(range(10))
        assert len(journal.numbers("load")) == 2

    def test_a_host_that_dies_while_it_loads_is_tried_three_times(self, spark, journal):
        def make_stillborn():
            journal.note("load", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(
            PythonException, match="the model host of make_stillborn ended 3 times before it could load the model"
        ):
            spark.range(1).select(predicting(make_stillborn)("id")).collect()
        assert len(set(journal.numbers("load"))) == 3

    def test_reaching_for_hosts_that_end_costs_the_server_no_descriptor(self, spark, journal, eventually):
        [host] = hosts_of(spark.range(1).select(predicting(process_id_model(journal), "bigint")("id")))
        server = psutil.Process(host).parent().parent()

        def make_stillborn():
            os._exit(3)

        def query():
            with pytest.raises(PythonException, match="ended 3 times before it could load the model"):
                spark.range(0, 2, 1, 2).select(predicting(make_stillborn)("id")).collect()

        for _ in range(3):
            query()
        before = server.num_fds()
        for _ in range(20):
            query()
        # A leak of one in each task would be 40; the server opens and closes others meanwhile.
        eventually(lambda: server.num_fds() < before + 20, 30, "the server's descriptors are those of before")

    def test_a_nursery_that_died_between_two_queries_is_replaced_with_its_hosts(self, spark, journal, eventually):
        udf = predicting(process_id_model(journal), "bigint")
        [first] = hosts_of(spark.range(0, 10, 1, 2).select(udf("id")))
        nursery = psutil.Process(first).parent()
        nursery.kill()
        [second] = hosts_of(spark.range(0, 10, 1, 2).select(udf("id")))
        assert psutil.Process(second).parent() != nursery
        assert journal.numbers("load") == [first, second]
        eventually(lambda: not psutil.pid_exists(first), 10, "the host has gone with its nursery")

    def test_a_limit_leaves_no_connection_behind(self, spark, journal, eventually):
        def make_watchful():
            journal.note("load", os.getpid())

            def predict(x):
                journal.note("batch", len(x))
                journal.note("connections", memory_files(os.getpid()))
                return np.full(len(x), os.getpid())

            return predict

        udf = predicting(make_watchful, "bigint", batch_size=10)
        [host] = hosts_of(spark.range(4).select(udf("id")))
        eventually(lambda: memory_files(host) == 0, 30, "the first query's connections are closed")
        idle = threads(host)
        for _ in range(4):
            assert len(spark.range(0, 400_000, 1, 4).select(udf("id")).limit(3).collect()) == 3
        assert sum(journal.numbers("batch")) < 400_000  # the tasks were cut off
        eventually(lambda: memory_files(host) == 0, 30, "the connections of the cut-off tasks are closed")
        eventually(lambda: threads(host) <= idle, 30, "the threads of the cut-off tasks have ended")
        assert journal.numbers("load") == [host]
        assert min(journal.numbers("connections")) >= 1  # what is counted was there

    def test_a_failed_load_is_tried_again_by_the_next_query(self, spark, tmp_path):
        weights = tmp_path / "weights"

        def make_from_file():
            offset = float(weights.read_text())
            return lambda x: x + offset

        frame = spark.range(0, 4, 1, 1).select(predicting(make_from_file)("id"))
        with pytest.raises(PythonException, match="FileNotFoundError"):
            frame.collect()
        weights.write_text("0.5")
        assert column(frame) == [0.5, 1.5, 2.5, 3.5]

    def test_a_failed_batch_leaves_the_model_in_place(self, spark, journal):
        def make_fragile():
            journal.note("load", os.getpid())

            def predict(x):
                if 3 in x:
                    raise ValueError("three")
                return x + 0.0

            return predict

        udf = predicting(make_fragile)
        with pytest.raises(PythonException, match="three"):
            spark.range(0, 10, 1, 1).select(udf("id")).collect()
        assert column(spark.range(4, 6, 1, 1).select(udf("id"))) == [4.0, 5.0]
        assert len(journal.numbers("load")) == 1


class TestTaskContext:
    def test_it_is_the_task_that_loads_and_whose_batch_it_is(self, spark):
        def make():
            loaded = TaskContext.get()

            def predict(x):
                task = TaskContext.get()
                row = {
                    "loaded": loaded.partitionId(),
                    "partition": task.partitionId(),
                    "task": task.taskAttemptId(),
                    "stage": task.stageId(),
                }
                return [row] * len(x)

            return predict

        udf = predicting(make, "loaded int, partition int, task bigint, stage int", batch_size=3)
        rows = spark.range(0, 40, 1, 4).select(F.spark_partition_id().alias("at"), udf("id").alias("saw")).collect()
        assert [row["saw"]["partition"] for row in rows] == [row["at"] for row in rows]
        assert len({row["saw"]["task"] for row in rows}) == 4
        assert len({row["saw"]["stage"] for row in rows}) == 1
        assert len({row["saw"]["loaded"] for row in rows}) == 1


class TestArgumentExpressions:
    @pytest.mark.parametrize(
        "argument",
        [
            "rand(7)",
            "cast(monotonically_increasing_id() as double)",
            "cast(spark_partition_id() as double)",
            "sqrt(id) + 1",
            "(select 2.5D)",
            "case when id > 3 then 1D else 2D end",
        ],
    )
    def test_an_argument_may_be_any_expression(self, spark, argument):
        def make_same():
            return lambda x: x * 1.0

        frame = spark.range(0, 20, 1, 2).withColumn("a", F.expr(argument))
        rows = frame.select("a", predicting(make_same)("a").alias("p")).collect()
        assert [row.p for row in rows] == [row.a for row in rows]
        direct = spark.range(0, 20, 1, 2).select(predicting(make_same)(F.expr(argument)).alias("p")).collect()
        assert len(direct) == 20
        if "rand" not in argument:
            assert [row.p for row in direct] == [row.a for row in rows]
