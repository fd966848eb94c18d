"""Everything that pyspark's own predict_batch_udf accepts gives the same values here, and what it refuses is refused with the same class."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark import TaskContext, cloudpickle
from pyspark.errors import PythonException
from pyspark.ml.functions import predict_batch_udf as pyspark_predict
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType
from sparkgap import predict_batch_udf as sparkgap_predict

cloudpickle.register_pickle_by_value(sys.modules[__name__])

# pyspark's own worker code warns of its arguments.
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Case:
    """A call that both have to answer alike."""

    predict: Callable[..., Any]
    return_type: str
    columns: tuple[str, ...]
    shapes: Any = None
    batch_size: int = 4
    where: str = "true"
    words: tuple[str, ...] = field(default=())


def one(x):
    return x


def tenfold(x):
    return x * 10


def total(x):
    return x.reshape(len(x), -1).sum(axis=1)


def described(value):
    """Types, shapes and values all the way down; pandas' Timestamp is a datetime."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} [{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        return str({key: described(each) for key, each in value.items()})
    return f"{type(value).__name__} {value!r}"


def seen(x, y):
    return np.array([described(each) for each in x], dtype=object)


def task(x):
    """What `TaskContext.get()` says of everything that is the same in two queries."""
    context = TaskContext.get()
    figures = context.partitionId(), context.attemptNumber(), context.cpus(), sorted(context.resources())
    known = [context.getLocalProperty(key) is not None for key in ("spark.sql.execution.id", "spark.job.tags", "no")]
    kinds = type(context.stageId()), type(context.taskAttemptId()), type(context.resources())
    return np.array([f"{figures} {known} {kinds}"] * len(x), dtype=object)


ACCEPTED = {
    "a scalar column": Case(lambda x: x + 1.0, "double", ("id",)),
    "integers stay integers": Case(lambda x: x * 2, "long", ("id",)),
    "several scalar columns": Case(lambda x, y: x + y, "double", ("id", "half")),
    "floats": Case(one, "float", ("single",)),
    "a null makes floats of its batch": Case(
        lambda x: np.full(len(x), x.dtype.kind == "f", np.int32), "int", ("holes",), batch_size=10
    ),
    "nulls among floats": Case(lambda x: np.isnan(x).astype(np.int8), "byte", ("half_holes",)),
    "strings in": Case(lambda x: np.array([len(text or "") for text in x]), "int", ("name",)),
    "strings out": Case(lambda x: np.array([f"<{value}>" for value in x], dtype=object), "string", ("id",)),
    "array() of scalars": Case(total, "double", ("array(half, cast(id as double))",), [[2]]),
    "struct() of scalars for one argument": Case(lambda x: x.sum(axis=1), "double", ("struct(id, half)",)),
    "struct() of scalars for as many arguments": Case(lambda x, y: x - y, "double", ("struct(id, half)",)),
    "struct() of scalars with a shape": Case(lambda x: x.sum(axis=1), "double", ("struct(id, half)",), [[2]]),
    "a tensor column": Case(total, "float", ("tensor",), [[3]]),
    "a tensor column of several dimensions": Case(lambda x: x[:, 0, 2] - x[:, 0, 0], "float", ("tensor",), [[1, 3]]),
    "shapes as a dict": Case(total, "float", ("tensor",), {0: [3]}),
    "tensors and scalars": Case(lambda x, y: total(x) + y, "double", ("tensor", "half"), [[3], None]),
    "tensors and scalars by a dict": Case(lambda x, y: x + total(y), "double", ("half", "tensor"), {1: [3]}),
    "several tensor columns": Case(lambda x, y: total(x) * total(y), "double", ("tensor", "pair"), [[3], [2]]),
    "tensors in a struct": Case(lambda x, y: total(x) + total(y), "double", ("struct(tensor, pair)",), [[3], [2]]),
    "null elements of a tensor": Case(lambda x: np.isnan(x).sum(axis=1), "int", ("gaps",), [[2]]),
    "a column of predictions": Case(lambda x: x[:, None] * 1.0, "double", ("id",)),
    "arrays of structs": Case(
        seen, "string", ("array(struct(id, name), struct(id, cast(null as string) as name))", "id"), [None, None]
    ),
    "ragged arrays of structs": Case(
        seen, "string", ("transform(sequence(0, id % 3), i -> struct(i, tensor as t))", "id"), [None, [1]]
    ),
    "nested arrays": Case(seen, "string", ("array(tensor, array(single))", "id"), [None, None]),
    "nested arrays with a shape": Case(seen, "string", ("array(tensor, gaps)", "id"), [[2], None]),
    "ragged arrays": Case(seen, "string", ("sequence(0, id % 3)", "id"), [None, None]),
    "maps": Case(seen, "string", ("map('a', half_holes, name, 1)", "id"), where="name is not null"),
    "maps of arrays and structs": Case(seen, "string", ("map('a', struct(pair, id))", "id")),
    "the context of the task": Case(task, "string", ("id",)),
    "array out": Case(lambda x: np.stack([x, x * 2.0], axis=1), "array<double>", ("id",)),
    "integer arrays out": Case(lambda x: np.stack([x, x * 2], axis=1), "array<long>", ("id",)),
    "a dict of arrays": Case(lambda x: {"a": x, "b": x * 0.5}, "struct<a: long, b: double>", ("id",)),
    "a dict with an array field": Case(
        lambda x: {"a": x, "b": np.stack([x, -x], axis=1) * 1.0}, "struct<a: long, b: array<double>>", ("id",)
    ),
    "a list of dicts": Case(
        lambda x: [{"a": int(value), "b": value * 0.5} for value in x], "struct<a: long, b: double>", ("id",)
    ),
    "a list of dicts with arrays": Case(
        lambda x: [{"a": int(value), "b": np.array([value, 1.0])} for value in x],
        "struct<a: int, b: array<double>>",
        ("id",),
    ),
    "integers become floats": Case(one, "double", ("id",)),
    "whole floats become integers": Case(lambda x: x * 2.0, "int", ("half",)),
    "NaN becomes null": Case(lambda x: np.where(x % 2 == 0, np.nan, x), "double", ("id",)),
    "booleans in": Case(lambda x: x.astype(np.int32), "int", ("even",)),
    "batches of one row": Case(lambda x: np.full(len(x), len(x)), "int", ("id",), batch_size=1),
    "a batch larger than the table": Case(tenfold, "long", ("id",), batch_size=1000),
    "no rows": Case(tenfold, "long", ("id",), where="id < 0"),
    "one row": Case(tenfold, "long", ("id",), where="id = 3"),
}

REFUSED = {
    "predictions of another length": Case(lambda x: x[:1], "long", ("id",), words=("same length", "1", "4")),
    "two dimensions for a scalar": Case(lambda x: np.ones((len(x), 2)), "double", ("id",), words=("(4, 2)",)),
    "one dimension for an array": Case(lambda x: x * 1.0, "array<double>", ("id",), words=("two-dimensional", "(4,)")),
    "an array for a struct": Case(one, "struct<a: long>", ("id",), words=("dictionary", "ndarray")),
    "too few columns": Case(lambda x, y: x, "long", ("id",), words=("2 inputs", "1 columns")),
    "too many columns": Case(lambda x, y: x, "long", ("id", "half", "single"), words=("2 inputs", "3 columns")),
    "tensors without a shape": Case(total, "float", ("tensor",), words=("input_tensor_shapes", "tensor")),
    "tensors of another shape": Case(total, "float", ("tensor",), [[2, 2]], words=("[2, 2]", "4 values", "3")),
    "integers too large for their type": Case(lambda x: x * 100, "byte", ("id",), words=("int8", "not in range")),
    "fractions for integers": Case(lambda x: x + 0.7, "int", ("half",), words=("int32", "truncated")),
    "several columns for one argument": Case(
        total, "double", ("id", "half"), words=("Multiple input columns", "array", "half")
    ),
    "too many shapes": Case(lambda x, y: x, "long", ("id", "half"), [None, None, [1]], words=("3 shapes", "2 columns")),
}


@pytest.fixture(scope="module")
def spark(either_way):
    return either_way


@pytest.fixture(scope="module")
def frame(spark) -> DataFrame:
    rows = [
        (
            i, i / 2, float(i), None if i in (0, 5) else i, None if i == 2 else i / 4, None if i == 1 else "é" * i,
            [float(i), i + 0.5, float(-i)], [i, 1.0], [None if i == 6 else 1.0, 2.0], i % 2 == 0,
        )
        for i in range(10)
    ]  # fmt: skip
    schema = (
        "id long, half double, single float, holes int, half_holes double, name string, "
        "tensor array<float>, pair array<double>, gaps array<double>, even boolean"
    )
    return spark.createDataFrame(rows, schema).repartition(1).sortWithinPartitions("id").cache()


def rows_of(make: Any, case: Case, frame: DataFrame) -> list[Any]:
    def make_predict_fn():
        return case.predict

    settings = {"batch_size": case.batch_size, "input_tensor_shapes": case.shapes}
    udf = make(make_predict_fn, return_type=DataType.fromDDL(case.return_type), **settings)
    found = frame.where(case.where).select("id", udf(*map(F.expr, case.columns)).alias("p"))
    assert found.schema["p"].dataType == DataType.fromDDL(case.return_type)
    return [(row["id"], row["p"]) for row in found.collect()]


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_the_same_values(frame, case: Case) -> None:
    ours, theirs = rows_of(sparkgap_predict, case, frame), rows_of(pyspark_predict, case, frame)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_the_same_refusals(frame, case: Case) -> None:
    with pytest.raises(PythonException) as theirs:
        rows_of(pyspark_predict, case, frame)
    with pytest.raises(PythonException) as ours:
        rows_of(sparkgap_predict, case, frame)
    assert "ValueError" in str(theirs.value)
    assert "ValueError" in str(ours.value)
    for word in case.words:
        assert word in str(ours.value)


class Model:
    """What a model that is called by a method looks like."""

    def __init__(self, factor):
        self.factor = factor

    def one(self, x):
        return x * self.factor

    def two(self, x, y=1.0):
        return x * self.factor + y

    @classmethod
    def made(cls, x):
        return x + 1.0

    @staticmethod
    def plain(x):
        return x + 2.0

    def __call__(self, x):
        return x - self.factor


def with_default(x, scale=2.0):
    return x * scale


def with_several(*arrays):
    return arrays[0] * 1.0


def with_keywords(x, **more):
    return x * 1.0


def with_keyword_only(x, *, scale=2.0):
    return x * scale


def words_of(inputs, columns):
    return (f"{inputs} inputs", f"{columns} columns")


COUNTED = {
    "a bound method": (Model(2.0).one, 1),
    "a bound method of two": (Model(2.0).two, 2),
    "a class method": (Model.made, 1),
    "a static method": (Model.plain, 1),
    "an object that can be called": (Model(3.0), 1),
    "a default": (with_default, 2),
    "*args": (with_several, 1),
    "partial by position": (functools.partial(Model.two, Model(2.0)), 2),
}
"""Each with the number of columns that it takes."""

MISCOUNTED = {
    "a default that nobody fills": (with_default, ("half",), words_of(2, 1)),
    "more columns than *args counts for": (with_several, ("half", "id"), ("Multiple input columns", "*args")),
    "**kwargs": (with_keywords, ("half",), words_of(2, 1)),
    "a default of partial": (functools.partial(with_default, scale=3.0), ("half",), words_of(2, 1)),
    "no inputs": (lambda: 1, ("half",), words_of(0, 1)),
}


@pytest.mark.parametrize(("predict", "inputs"), COUNTED.values(), ids=COUNTED.keys())
def test_inputs_are_counted_as_pyspark_counts_them(frame, predict, inputs):
    case = Case(predict, "double", ("half", "half_holes")[:inputs])
    assert repr(rows_of(sparkgap_predict, case, frame)) == repr(rows_of(pyspark_predict, case, frame))


@pytest.mark.parametrize(("predict", "columns", "words"), MISCOUNTED.values(), ids=MISCOUNTED.keys())
def test_where_the_count_does_not_fit_the_text_says_how_inputs_are_counted(frame, predict, columns, words):
    case = Case(predict, "double", columns)
    with pytest.raises(PythonException):
        rows_of(pyspark_predict, case, frame)
    with pytest.raises(PythonException) as ours:
        rows_of(sparkgap_predict, case, frame)
    for word in (*words, "Each parameter of predict is an input", "lambda x: predict(x, scale=2.0)"):
        assert word in str(ours.value)


def test_a_function_whose_inputs_cannot_be_counted_is_refused_as_by_pyspark(frame):
    case = Case(max, "double", ("half",))
    for make in (sparkgap_predict, pyspark_predict):
        with pytest.raises(PythonException, match="no signature found"):
            rows_of(make, case, frame)
    with pytest.raises(PythonException, match=r"return a function of your own, lambda x: max\(x\)"):
        rows_of(sparkgap_predict, case, frame)


class TestTheFunction:
    """What pyspark's function on columns has and does."""

    @pytest.fixture
    def both(self):
        def make_predict_fn():
            return one

        settings = {"return_type": DataType.fromDDL("array<double>"), "batch_size": 2}
        return [make(make_predict_fn, **settings) for make in (sparkgap_predict, pyspark_predict)]

    def test_return_type(self, both):
        ours, theirs = both
        assert ours.returnType == theirs.returnType

    def test_as_nondeterministic(self, both):
        ours, theirs = (udf.asNondeterministic() for udf in both)
        assert not ours.deterministic
        assert not theirs.deterministic
        assert ours.returnType == theirs.returnType

    def test_a_column_or_its_name(self, both, frame):
        for udf in both:
            pair = frame.select(udf("pair").alias("a"), udf(F.col("pair")).alias("b"), udf(frame["pair"]).alias("c"))
            with pytest.raises(PythonException, match="input_tensor_shapes"):
                pair.collect()


def test_pandas_and_sparkgap_agree_on_a_table_in_pandas(frame):
    def make_predict_fn():
        return lambda x, y: {"a": x, "b": y}

    kind = DataType.fromDDL("struct<a: long, b: double>")
    tables = [
        frame.select(make(make_predict_fn, return_type=kind, batch_size=3)("id", "half_holes").alias("p"))
        .select("p.*")
        .toPandas()
        for make in (sparkgap_predict, pyspark_predict)
    ]
    pd.testing.assert_frame_equal(*tables)
