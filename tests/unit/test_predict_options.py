"""What predict_batch_udf takes beyond pyspark's: what is refused at the client, and what stands in the plan."""

import functools
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from pyspark.sql.connect import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    ByteType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    NullType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
    VarcharType,
)
from sparkgap import PlanError, channel, predict_batch_udf
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server.predict.columns import SCALARS
from sparkgap_server.predict.task import task_of


def make_model():
    return lambda x: x


def test_a_function_that_captures_a_session_is_refused_by_name():
    from pyspark.sql.connect.session import SparkSession

    spark = object.__new__(SparkSession)

    def make():
        weights = spark.read.parquet("/weights")
        return lambda x: x + weights.count()

    udf = predict_batch_udf(make, return_type="double", batch_size=1)
    with pytest.raises(
        PlanError, match=r"make_predict_fn \(make\) cannot be sent: .*: its closure variable 'spark' is a pyspark"
    ):
        udf.to_plan()


@pytest.mark.parametrize(("function", "portable"), [(make_model, True), (lambda: make_model, False)])
def test_the_plan_says_whether_other_versions_of_python_can_open_it(function, portable):
    plan, _ = predict_batch_udf(function, return_type="double", batch_size=1).to_plan()
    assert plan.make_predict_fn.portable == portable


@pytest.fixture
def plan_of():
    """The plan of a prediction with the given options."""

    def plan(**options):
        plan, _ = predict_batch_udf(make_model, return_type=DoubleType(), batch_size=4, **options).to_plan()
        return plan

    return plan


def refused(text, **options):
    with pytest.raises(PlanError, match=f"^{re.escape(text)}"):
        predict_batch_udf(make_model, **{"return_type": "double", "batch_size": 4, **options})


NAMES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


class TestInputDtypes:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_dtype_may_be_given_by_name_or_as_numpys_own(self, plan_of, name):
        given = [name, np.dtype(name), np.dtype(name).type, np.dtype(name).str]
        assert [each.name for each in plan_of(input_dtypes=given).input_dtypes.dtypes] == [name] * 4
        assert task_of(plan_of(input_dtypes=[name])).layout.dtypes == (np.dtype(name),)

    def test_none_stands_for_an_input_that_is_left_as_it_is(self, plan_of):
        plan = plan_of(input_dtypes=["float32", None])
        assert task_of(plan).layout.dtypes == (np.dtype("float32"), None)

    def test_a_dict_names_inputs_by_position(self, plan_of):
        plan = plan_of(input_dtypes={1: "float32", 2: None})
        layout = task_of(plan).layout
        assert (layout.dtypes, layout.sparse_dtypes) == (None, {1: np.dtype("float32")})
        assert layout.dense_dtypes(3) == (None, np.dtype("float32"), None)

    def test_nothing_declared_is_nothing_in_the_plan(self, plan_of):
        assert not plan_of().HasField("input_dtypes")
        layout = task_of(plan_of()).layout
        assert (layout.dtypes, layout.sparse_dtypes) == (None, None)

    @pytest.mark.parametrize(
        "given", ["complex64", "float128x", "object", "S4", ">f4", object, "datetime64[us]", 3, [1]]
    )
    def test_other_dtypes_are_refused(self, given):
        refused(
            f"input_dtypes has {given!r} for input 1: a NumPy dtype is needed, bool, int8", input_dtypes=[None, given]
        )

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ("float32", "input_dtypes has to be a list or a dict of dtypes, got 'float32'"),
            (3, "input_dtypes has to be a list or a dict of dtypes, got 3"),
            ({"x": "float32"}, "input_dtypes has the key 'x': the position of an input is needed"),
            ({-1: "float32"}, "input_dtypes has the key -1"),
            ({True: "float32"}, "input_dtypes has the key True"),
        ],
    )
    def test_other_forms_are_refused(self, given, text):
        refused(text, input_dtypes=given)

    def test_plain_names_do_not_import_numpy(self):
        code = """
import sys
from sparkgap.options import PlanOptions
assert "numpy" not in sys.modules
PlanOptions.of(["float32", None], "keep", None)
PlanOptions.of({0: "uint8"}, "skip", "2")
assert "numpy" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


class TestNulls:
    def test_each_word_has_its_number(self, plan_of):
        assert [task_of(plan_of(nulls=each)).nulls for each in ("keep", "error", "skip")] == [
            pb.PredictPlan.NULLS_KEEP, pb.PredictPlan.NULLS_ERROR, pb.PredictPlan.NULLS_SKIP,
        ]  # fmt: skip
        assert plan_of().nulls == pb.PredictPlan.NULLS_KEEP

    @pytest.mark.parametrize("given", ["drop", "", None, 1, ["skip"]])
    def test_other_words_are_refused(self, given):
        refused(f'nulls has to be "keep", "error" or "skip", got {given!r}', nulls=given)


class TestIdentity:
    def test_another_version_is_another_model(self, plan_of):
        digests = {plan_of(version=version).digest for version in (None, "1", "2", "1")}
        assert len(digests) == 3
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert plan_of(version="1").version == "1"

    def test_the_name_is_shown_and_has_no_part_in_the_identity(self, plan_of):
        assert plan_of().name == "make_model"
        assert plan_of(name="digits").name == "digits"
        assert plan_of(name="digits").digest == plan_of().digest
        assert "digits" in repr(predict_batch_udf(make_model, return_type="double", batch_size=4, name="digits"))

    @pytest.mark.parametrize("option", ["name", "version"])
    @pytest.mark.parametrize("given", ["", "a\nb", "a\0", "x" * 129, 3, b"x", True])
    def test_what_cannot_be_shown_in_a_line_is_refused(self, option, given):
        refused(f"{option} has to be a string of 1 to 128 printable characters, got {given!r}", **{option: given})


SUPPORTED = [
    ByteType, ShortType, IntegerType, LongType, FloatType, DoubleType, BooleanType, StringType, BinaryType, DateType,
    TimestampType, TimestampNTZType,
]  # fmt: skip
UNSUPPORTED = [DecimalType(5, 2), NullType(), MapType(StringType(), IntegerType()), VarcharType(3)]


class TestReturnType:
    @pytest.mark.parametrize("kind", SUPPORTED)
    def test_scalars_arrays_and_fields_of_these_are_taken(self, kind):
        for each in (kind(), ArrayType(ArrayType(kind())), StructType([StructField("a", ArrayType(kind()))])):
            predict_batch_udf(make_model, return_type=each, batch_size=4)

    def test_the_client_takes_what_the_model_host_takes(self):
        assert set(SUPPORTED) == set(SCALARS)

    @pytest.mark.parametrize("kind", UNSUPPORTED, ids=str)
    def test_others_are_refused(self, kind):
        for each in (kind, ArrayType(kind)):
            refused(f"Unsupported return type {each.simpleString()}: a prediction is", return_type=each)
            struct = StructType([StructField("a", LongType()), StructField("b", each)])
            refused(f"Unsupported return type {each.simpleString()} of field 'b': ", return_type=struct)

    def test_structs_are_not_nested(self):
        inner = StructType([StructField("a", LongType())])
        refused("Unsupported return type array<struct<a:bigint>>", return_type=ArrayType(inner))
        refused(
            "Unsupported return type struct<a:bigint> of field 'b'", return_type=StructType([StructField("b", inner)])
        )


def test_spark_udf_register_is_told_where_to_go():
    from pyspark.sql.connect.udf import UDFRegistration

    udf = predict_batch_udf(make_model, return_type="double", batch_size=4, name="digits")
    with pytest.raises(PlanError) as error:
        UDFRegistration(None).register("digits", udf)
    assert str(error.value) == (
        "digits is no UDF of Spark's Python workers, and spark.udf.register does not take it: register it with "
        "sparkgap.register(spark, name, udf)"
    )


# ---- Depths ----


def deep(levels, kind=IntegerType):
    found = kind()
    for _ in range(levels):
        found = ArrayType(found)
    return found


@pytest.mark.parametrize(
    "return_type",
    [
        "array<" * 2000 + "int" + ">" * 2000,
        "struct<x:" * 101 + "int" + ">" * 101,
        deep(2000),
        StructType([StructField("x", deep(200))]),
        deep(2000, lambda: MapType(StringType(), IntegerType())),
        functools.reduce(lambda inner, _: StructType([StructField("x", inner)]), range(200), IntegerType()),
    ],
    ids=["DDL", "structs in DDL", "arrays", "arrays in a struct", "arrays of maps", "structs"],
)
def test_a_type_that_is_nested_too_deep_for_any_parser_is_refused(return_type):
    with pytest.raises(PlanError, match="return_type is nested too deep: at most 100 levels are allowed"):
        predict_batch_udf(lambda: None, return_type=return_type, batch_size=1)


def test_a_type_of_too_many_characters_is_refused():
    with pytest.raises(PlanError, match="return_type has 1400000 characters: at most 1000000 are allowed"):
        predict_batch_udf(lambda: None, return_type="x int, " * 200_000, batch_size=1)


def test_deep_and_long_enough_types_are_taken():
    for return_type in (
        deep(99),
        "array<" * 100 + "int" + ">" * 100,
        ", ".join(f"x{index} double" for index in range(10_000)),
    ):
        predict_batch_udf(lambda: None, return_type=return_type, batch_size=1)


def test_a_prediction_of_a_prediction_ends_somewhere():
    plus = predict_batch_udf(lambda: lambda x: x, return_type="double", batch_size=1)
    column = functools.reduce(lambda inner, _: plus(inner), range(32), "id")
    with pytest.raises(PlanError, match="is given a prediction of a prediction, more than 32 deep: make columns of"):
        plus(column)


def test_predictions_with_functions_between_them_end_somewhere_too(monkeypatch):
    plus = predict_batch_udf(lambda: lambda x: x, return_type="double", batch_size=1)
    column = functools.reduce(lambda inner, _: plus(F.abs(inner)), range(500), "id")
    client = types.SimpleNamespace()
    monkeypatch.setattr(channel, "require_extension", lambda session: None)
    with pytest.raises(PlanError, match="is given a prediction of a prediction, more than 32 deep: make columns of"):
        column._expr.to_plan(client)
