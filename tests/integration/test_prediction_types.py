"""Kinds of columns that go into a model and come out of it beyond pyspark's, and what becomes of nulls, on a real server and in both ways."""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pyspark import cloudpickle
from pyspark.errors import PythonException
from pyspark.errors.exceptions.connect import IllegalArgumentException
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    ByteType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)
from sparkgap import PlanError, predict_batch_udf

# The model hosts cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

ZONE = "America/New_York"


@pytest.fixture(scope="module")
def spark(either_way):
    """In a time zone that is not the machine's."""
    either_way.conf.set("spark.sql.session.timeZone", ZONE)
    return either_way


@pytest.fixture(scope="module")
def numbers(spark):
    """Ten rows in order: the long id, and x, which is null in each third row."""
    return spark.range(0, 10, 1, 1).withColumn("x", F.expr("if(id % 3 = 0, null, cast(id as double))"))


@pytest.fixture(scope="module")
def images(spark):
    """Ten rows: the bytes of a float32 tensor of shape (2, 3) that begins with id, and the bytes of its three int16."""
    rows = [(i, (np.arange(6, dtype="<f4") + i).tobytes(), np.full(3, -i, "<i2").tobytes()) for i in range(10)]
    return spark.createDataFrame(rows, "id long, image binary, marks binary").repartition(1).sortWithinPartitions("id")


def predicting(function, return_type="double", *, batch_size=4, **options):
    return predict_batch_udf(function, return_type=return_type, batch_size=batch_size, **options)


def column(frame):
    """Values of a frame with one column."""
    return [row[0] for row in frame.collect()]


def error_of(query, kind=PythonException):
    with pytest.raises(kind) as error:
        query.collect()
    return str(error.value).split("JVM stacktrace")[0]


def returning(value):
    """A model that predicts `value` for each row, whatever the input."""

    def make_constant():
        return lambda x: np.repeat(value[None], len(x), axis=0)

    return make_constant


class TestBinaryTensors:
    def test_one_binary_column_arrives_as_tensors_that_can_be_written_to(self, images):
        def make():
            def predict(x):
                assert (x.dtype, x.shape[1:], x.flags.writeable) == (np.float32, (2, 3), True)
                return x[:, 1, 0]

            return predict

        udf = predicting(make, "float", input_tensor_shapes=[[2, 3]], input_dtypes=["float32"])
        assert column(images.select(udf("image"))) == [i + 3.0 for i in range(10)]

    def test_several_columns_have_dtypes_of_their_own(self, images):
        def make():
            def predict(number, image, marks):
                assert (number.dtype, image.dtype, marks.dtype) == (np.float32, np.float32, np.int16)
                return number + image[:, 0, 0] + marks[:, 0]

            return predict

        shapes, dtypes = [None, [2, 3], [3]], {0: np.float32, 1: "float32", 2: np.dtype("i2")}
        udf = predicting(make, "float", input_tensor_shapes=shapes, input_dtypes=dtypes)
        assert column(images.select(udf("id", "image", "marks"))) == [float(i) for i in range(10)]

    def test_a_row_of_another_length_is_named(self, images):
        udf = predicting(returning(np.float64(0)), input_tensor_shapes=[[2, 3]], input_dtypes=["float32"])
        cut = images.select(udf(F.expr("if(id = 6, substring(image, 1, 8), image)").alias("image")))
        assert (
            "and the dtype float32, which takes 24 bytes a row, but row 2 of 4 in the batch has 8 (1 such rows)"
        ) in error_of(cut)

    def test_a_missing_dtype_is_asked_for(self, images):
        text = error_of(images.select(predicting(returning(np.float64(0)), input_tensor_shapes=[[2, 3]])("image")))
        assert "Column 'image' is binary and has no dtype: declare input_dtypes" in text


class TestVectors:
    @pytest.mark.parametrize("vectors", ["dense", "sparse", "mixed"])
    def test_a_vector_column_is_one_tensor(self, spark, vectors):
        kinds = {"dense": lambda i: False, "sparse": lambda i: True, "mixed": lambda i: i % 2}
        rows = [
            (i, SparseVector(3, {1: float(i)}) if kinds[vectors](i) else Vectors.dense(0.0, i, 0.0)) for i in range(10)
        ]
        schema = StructType([StructField("id", LongType()), StructField("v", VectorUDT())])
        frame = spark.createDataFrame(rows, schema).repartition(1).sortWithinPartitions("id")

        def make():
            def predict(number, v):
                assert (v.dtype, v.shape[1:]) == (np.float32, (3,))
                return v @ np.array([1, 10, 100]) + number

            return predict

        udf = predicting(make, input_tensor_shapes=[None, [3]], input_dtypes=[None, "float32"])
        assert column(frame.select(udf("id", "v"))) == [11.0 * i for i in range(10)]

    def test_a_null_vector_is_skipped(self, spark):
        rows = [(Vectors.dense(1.0, 2.0),), (None,), (Vectors.sparse(2, {1: 5.0}),)]
        frame = spark.createDataFrame(rows, StructType([StructField("v", VectorUDT())])).coalesce(1)

        def make():
            return lambda v: v.sum(axis=1)

        assert sorted(column(frame.select(predicting(make, input_tensor_shapes=[[2]], nulls="skip")("v"))), key=str) == [
            3.0, 5.0, None,
        ]  # fmt: skip


class TestNulls:
    def test_kept_nulls_are_seen(self, numbers):
        def make():
            return lambda x: np.isnan(x).astype(float)

        assert column(numbers.select(predicting(make)("x"))) == [float(i % 3 == 0) for i in range(10)]

    @pytest.mark.parametrize(
        ("return_type", "expected"),
        [
            ("double", lambda i: 2.0 * i),
            ("string", str),
            ("array<double>", lambda i: [float(i)] * 3),
            ("array<array<string>>", lambda i: [[str(i)] * 2]),
            ("label bigint not null, scores array<double>", lambda i: {"label": i, "scores": [float(i)] * 3}),
        ],
        ids=["double", "string", "array", "nested array", "struct"],
    )
    def test_skipped_rows_have_null_predictions_and_the_model_does_not_see_them(self, numbers, return_type, expected):
        def make():
            def predict(x):
                assert not np.isnan(x).any()
                texts = x.astype(int).astype(str).astype(object)
                lists = np.repeat(x[:, None], 3, axis=1)
                return {
                    "double": x * 2,
                    "string": texts,
                    "array<double>": lists,
                    "array<array<string>>": np.repeat(texts[:, None, None], 2, axis=2),
                }.get(return_type, {"label": x.astype(int), "scores": lists})

            return predict

        predicted = column(numbers.select(predicting(make, return_type, nulls="skip")("x")))
        plain = [each.asDict() if hasattr(each, "asDict") else each for each in predicted]
        assert plain == [None if i % 3 == 0 else expected(i) for i in range(10)]

    @pytest.mark.parametrize("return_type", ["double", "string", "array<string>", "a int, b array<binary>"])
    def test_a_batch_of_nulls_does_not_call_the_model(self, spark, return_type):
        def make():
            def predict(x):
                raise AssertionError("it was called")

            return predict

        frame = spark.range(0, 10, 1, 1).select(F.expr("if(id < 20, null, id)").alias("x"))
        assert column(frame.select(predicting(make, return_type, nulls="skip")("x"))) == [None] * 10

    def test_a_null_element_or_field_is_one_too(self, numbers):
        def make():
            return lambda values, number: values.sum(axis=1) + number

        arguments = F.array(F.lit(1.0), F.expr("if(id = 2, null, 1.0d)")), F.col("x")
        expected = [None if i == 2 or i % 3 == 0 else 2.0 + i for i in range(10)]
        udf = predicting(make, input_tensor_shapes=[[2], None], nulls="skip")
        assert column(numbers.select(udf(*arguments))) == expected
        assert column(numbers.select(udf(F.struct(*arguments)))) == expected

    def test_an_error_names_the_column_and_the_row_and_the_model_is_not_called(self, numbers, tmp_path):
        path = str(tmp_path / "rows")

        def make():
            def predict(number, x):
                with open(path, "a") as file:
                    file.writelines(f"{each}\n" for each in number)
                return number * 1.0

            return predict

        whole = numbers.where("id in (1, 2, 4, 5, 7, 8, 9)").coalesce(1)
        text = error_of(whole.select(predicting(make, nulls="error")("id", "x")))
        assert (
            "ValueError: Column 'x' is null in row 2 of 3 in the batch (1 such rows), and nulls='error' refuses" in text
        )
        assert set(Path(path).read_text().split()) == {"1", "2", "4", "5"}

    def test_an_error_is_none_where_no_null_is(self, numbers):
        def make():
            return lambda x: x * 2

        assert column(numbers.where("x is not null").select(predicting(make, nulls="error")("x"))) == [
            2.0 * i for i in range(10) if i % 3
        ]


NOON = dt.datetime(2024, 7, 1, 12, 0, 0, 123456)
AWARE = NOON.replace(tzinfo=dt.timezone.utc)
DAY = dt.date(2024, 7, 1)


def described(frame):
    """Texts of values, as the server writes them in the session's time zone."""
    names = frame.columns
    return frame.selectExpr(*[f"cast(`{name}` as string) as c{index}" for index, name in enumerate(names)]).collect()


class TestReturnedKinds:
    """Times are compared as texts of the server: collect gives them in the client's time zone."""

    @pytest.mark.parametrize(
        ("return_type", "values", "text"),
        [
            ("boolean", np.array([True, False]), ["true", "false"]),
            ("timestamp", np.array([NOON, "NaT"], "M8[us]"), ["2024-07-01 12:00:00.123456", None]),
            ("timestamp", np.array([NOON, None], object), ["2024-07-01 12:00:00.123456", None]),
            ("timestamp", np.array([AWARE, NOON], object), ["2024-07-01 08:00:00.123456", "2024-07-01 12:00:00.123456"]),
            ("timestamp_ntz", np.array([NOON, "NaT"], "M8[us]"), ["2024-07-01 12:00:00.123456", None]),
            ("date", np.array([DAY, "NaT"], "M8[D]"), ["2024-07-01", None]),
            ("date", np.array([DAY, None], object), ["2024-07-01", None]),
            ("binary", np.array([b"ab", None], object), ["ab", None]),
            ("binary", np.array([b"ab", b"c"], "S2"), ["ab", "c"]),
            ("string", np.array(["ab", "é"]), ["ab", "é"]),
            ("string", np.array(["ab", None], object), ["ab", None]),
            ("array<timestamp>", np.array([[NOON], ["NaT"]], "M8[us]"), ["[2024-07-01 12:00:00.123456]", "[null]"]),
            ("array<date>", np.array([[DAY, None], [DAY, DAY]], object), ["[2024-07-01, null]", "[2024-07-01, 2024-07-01]"]),
            ("array<boolean>", np.array([[True, False]] * 2), ["[true, false]"] * 2),
            ("array<string>", np.array([["a", "b"], ["c", "d"]]), ["[a, b]", "[c, d]"]),
        ],
    )  # fmt: skip
    def test_scalars_and_arrays(self, spark, return_type, values, text):
        def make():
            return lambda x: values[x]

        frame = spark.range(0, 2, 1, 1).select(predicting(make, return_type)("id").alias("p"))
        assert frame.schema["p"].dataType.simpleString() == return_type
        assert [row[0] for row in described(frame)] == text

    def test_bytes_come_back_as_they_are(self, spark):
        values = np.array([b"\0a\xff\0", b""], object)

        def make():
            return lambda x: values[x]

        assert column(spark.range(0, 2, 1, 1).select(predicting(make, "binary")("id"))) == [b"\0a\xff\0", b""]

    @pytest.mark.parametrize("by_row", [False, True], ids=["dict of arrays", "list of dicts"])
    def test_fields(self, spark, by_row):
        return_type = "at timestamp, local timestamp_ntz, day date, raw binary, good boolean, all array<timestamp>"

        def make():
            def predict(x):
                columns = {
                    "at": np.array([NOON] * len(x), "M8[ns]"),
                    "local": np.array([NOON] * len(x), "M8[s]"),
                    "day": np.array([DAY] * len(x), object),
                    "raw": np.array([b"a\0"] * len(x), object),
                    "good": x > 0,
                    "all": np.array([[NOON, None]] * len(x), object),
                }
                rows = [{name: values[row] for name, values in columns.items()} for row in range(len(x))]
                return rows if by_row else columns

            return predict

        frame = spark.range(0, 2, 1, 1).select(predicting(make, return_type)("id").alias("p")).select("p.*")
        at = "2024-07-01 12:00:00.123456"
        assert [tuple(row) for row in described(frame)] == [
            (at, "2024-07-01 12:00:00", "2024-07-01", "a\0", good, f"[{at}, null]") for good in ("false", "true")
        ]

    def test_more_dimensions_are_nested_arrays(self, spark):
        def make():
            return lambda x: x[:, None, None, None] + np.arange(12.0).reshape(2, 3, 2)

        predicted = column(spark.range(0, 5, 1, 1).select(predicting(make, "array<array<array<double>>>")("id")))
        assert predicted == [(np.arange(12.0).reshape(2, 3, 2) + i).tolist() for i in range(5)]

    def test_times_go_in_and_come_out_as_they_are(self, spark):
        def make():
            return lambda at: at + np.timedelta64(1, "D")

        times = spark.sql("select timestamp'2024-07-01 23:30:00' at union all select timestamp'1900-01-01 00:00:00'")
        later = times.coalesce(1).withColumn("p", predicting(make, "timestamp")("at"))
        assert later.where("p = at + interval 1 day").count() == 2

    def test_a_clock_change_in_the_way_is_told_with_the_time_zone(self, spark):
        gap = np.datetime64("2024-03-10T02:30")
        text = error_of(spark.range(1).select(predicting(returning(gap), "timestamp")("id")))
        assert f"ValueError: Prediction results: cannot convert local times of the session's time zone '{ZONE}'" in text


class TestUnsupportedReturnTypes:
    """Refused before any task starts, so that no model is loaded in vain."""

    @pytest.mark.parametrize(
        ("return_type", "text"),
        [
            ("map<string,int>", "Unsupported return type map<string,int>: a prediction is a number"),
            ("array<map<string,int>>", "Unsupported return type array<map<string,int>>: "),
            ("decimal(5,2)", "Unsupported return type decimal(5,2): "),
            ("interval day to second", "Unsupported return type interval day to second: "),
            ("varchar(3)", "Unsupported return type varchar(3): "),
            ("a int, b map<string,int>", "Unsupported return type map<string,int> of field 'b': "),
            ("a int, b struct<c:int>", "Unsupported return type struct<c:int> of field 'b': "),
            ("array<struct<c:int>>", "Unsupported return type array<struct<c:int>>: "),
        ],
    )
    def test_as_ddl_they_are_refused_by_the_server_with_the_schema(self, spark, return_type, text):
        query = spark.range(3).select(predicting(returning(np.float64(0)), return_type)("id"))
        with pytest.raises(IllegalArgumentException) as error:
            query.schema  # asking for the schema starts no task
        assert str(error.value).startswith(text)

    def test_every_type_that_the_client_takes_is_taken_by_the_server(self, spark):
        kinds = [
            ByteType(), ShortType(), IntegerType(), LongType(), FloatType(), DoubleType(), BooleanType(), StringType(), BinaryType(),
            DateType(), TimestampType(), TimestampNTZType(),
        ]  # fmt: skip
        everything = StructType([StructField(f"f{index}", ArrayType(kind)) for index, kind in enumerate(kinds)])
        for kind in [*kinds, everything]:
            frame = spark.range(3).select(predicting(returning(np.float64(0)), kind)("id").alias("p"))
            assert frame.schema["p"].dataType == kind


class TestIdentity:
    def test_the_name_is_that_of_the_column_the_plan_and_the_errors(self, spark, capsys):
        def make():
            raise ValueError("no weights")

        frame = spark.range(3).select(predicting(make, name="digits of today")("id"))
        assert frame.columns == ["digits of today(id)"]
        frame.explain()
        assert "digits of today" in capsys.readouterr().out
        assert "digits of today: make_predict_fn raised in the model host" in error_of(frame)

    def test_another_version_is_another_model_and_another_name_is_not(self, spark):
        def make_process_id():
            return lambda x: np.full(len(x), os.getpid())

        def host(**options):
            [found] = set(column(spark.range(3).select(predicting(make_process_id, "long", **options)("id"))))
            return found

        plain = host()
        assert host(name="another") == plain
        assert host(version="1") != plain
        assert host(version="1") == host(version="1") != host(version="2")


def test_spark_udf_register_says_where_to_go(spark):
    with pytest.raises(PlanError, match=r"register it with sparkgap\.register\(spark, name, udf\)"):
        spark.udf.register("plus", predicting(returning(np.float64(0))))
