"""A chunk of several batches gives what its batches give one by one, and the model sees batches of exactly its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql.types import ArrayType, DataType, DoubleType, FloatType, LongType, StringType, StructType
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server.predict.chunk import Chunk
from sparkgap_server.predict.task import Task
from sparkgap_server.predict.tensors import InputLayout


def task(batch_size: int, return_type: DataType | None = None, nulls: int = 0, shapes: Any = None) -> Task:
    return Task(InputLayout(("x",), shapes), return_type or DoubleType(), batch_size, nulls)


def predicted(wanted: Task, column: pa.Array, predict: Callable[..., Any]) -> list[Any]:
    found, _ = Chunk(wanted, 1, [column], len(column)).predict(predict)
    return found.to_pylist()


def noting(sizes: list[int], predict: Callable[..., Any]) -> Callable[..., Any]:
    def noted(x: Any) -> Any:
        sizes.append(len(x))
        return predict(x)

    return noted


MODELS: dict[str, tuple[DataType, Callable[[Any], Any]]] = {
    "numbers": (DoubleType(), lambda x: x + 1.0),
    "a column of numbers": (DoubleType(), lambda x: x[:, None] * 2.0),
    "numbers of another type": (LongType(), lambda x: np.nan_to_num(x).round().astype(np.float32)),
    "texts": (StringType(), lambda x: np.array([f"{value:g}" for value in x], dtype=object)),
    "texts of a width": (StringType(), lambda x: np.array([f"{value:g}" for value in x])),
    "arrays": (ArrayType(DoubleType()), lambda x: np.stack([x, -x], axis=1)),
    "arrays as wide as their batch": (ArrayType(DoubleType()), lambda x: np.ones((len(x), len(x)))),
    "a dict": (
        StructType().add("a", DoubleType()).add("b", ArrayType(FloatType())),
        lambda x: {"b": np.float32([x, x]).T, "a": x},
    ),
    "a dict of texts": (StructType().add("a", StringType()), lambda x: {"a": x.astype(str)}),
    "a list of dicts": (StructType().add("a", DoubleType()), lambda x: [{"a": float(value)} for value in x]),
    "dtypes that differ by batch": (DoubleType(), lambda x: x if len(x) % 2 else np.zeros(len(x), np.int8)),
}


@pytest.mark.parametrize("nulls", [pb.PredictPlan.NULLS_UNSPECIFIED, pb.PredictPlan.NULLS_SKIP])
@pytest.mark.parametrize(("return_type", "predict"), MODELS.values(), ids=MODELS.keys())
@given(
    values=st.lists(st.none() | st.floats(-9, 9, width=32), min_size=1, max_size=40),
    batch_size=st.integers(1, 15),
    start=st.integers(0, 3),
)
def test_batches_together_give_what_each_gives(
    return_type: DataType, predict: Callable[[Any], Any], nulls: int, values: list[Any], batch_size: int, start: int
) -> None:
    column = pa.array([0.0] * start + values, pa.float64()).slice(start)
    wanted = task(batch_size, return_type, nulls)
    together, alone, expected = [], [], []
    found = predicted(wanted, column, noting(together, predict))
    for begin in range(0, len(values), batch_size):
        expected += predicted(wanted, column.slice(begin, batch_size), noting(alone, predict))
    assert repr(found) == repr(expected)  # NaN equals nothing
    assert together == alone


def test_every_batch_but_the_last_has_exactly_its_size() -> None:
    sizes: list[int] = []
    predicted(task(4), pa.array(np.arange(10.0)), noting(sizes, lambda x: x))
    assert sizes == [4, 4, 2]


def test_a_null_makes_floats_of_the_integers_of_its_own_batch_alone() -> None:
    seen: list[Any] = []
    predicted(task(2), pa.array([1, 2, None, 3, 4, 5]), lambda x: seen.append(x.dtype) or np.zeros(len(x)))
    assert seen == [np.int64, np.float64, np.int64]


@pytest.mark.parametrize("column", [pa.array(np.arange(7.0)), pa.array([0.0, 1.0, None, 3.0, 4.0, 5.0, 6.0])])
def test_a_model_may_return_the_same_memory_every_time(column: pa.Array) -> None:
    memory = np.empty(2)

    def predict(x: Any) -> Any:
        memory[: len(x)] = x
        return memory[: len(x)]

    assert predicted(task(2), column, predict) == column.to_pylist()


def test_a_model_may_write_into_its_batch() -> None:
    def predict(x: Any) -> Any:
        x *= 2
        return x

    column = pa.Array.from_buffers(pa.float64(), 5, [None, pa.py_buffer(bytearray(np.arange(5.0).tobytes()))])
    assert predicted(task(2), column, predict) == [0, 2, 4, 6, 8]


def test_an_error_in_a_row_names_its_row_in_its_batch_after_the_batches_before() -> None:
    sizes: list[int] = []
    column = pa.array([[1.0, 2.0]] * 5 + [[3.0]] + [[1.0, 2.0]], pa.list_(pa.float64()))
    with pytest.raises(ValueError, match="row 1 of 2 in the batch has 1"):
        predicted(task(2, shapes=((2,),)), column, noting(sizes, lambda x: x[:, 0]))
    assert sizes == [2, 2]


def test_predictions_that_do_not_fit_are_told_by_batch() -> None:
    with pytest.raises(ValueError, match=r"expected \(2,\) or \(2, 1\), got \(2, 3\)"):
        predicted(task(2), pa.array(np.arange(6.0)), lambda x: np.ones((len(x), 3)))
    with pytest.raises(ValueError, match="have 1, the batch 2"):
        predicted(task(2), pa.array(np.arange(6.0)), lambda x: x[:1])


def test_nothing_but_nulls_never_reaches_a_model_that_skips_them() -> None:
    sizes: list[int] = []
    column = pa.array([None, None, None, 1.0, None], pa.float64())
    skipping = task(2, nulls=pb.PredictPlan.NULLS_SKIP)
    assert predicted(skipping, column, noting(sizes, lambda x: x)) == column.to_pylist()
    assert sizes == [1]


def test_the_models_time_is_the_sum_over_its_batches() -> None:
    import time

    _, seconds = Chunk(task(1), 1, [pa.array([1.0, 2.0, 3.0])], 3).predict(lambda x: time.sleep(0.01) or x)
    assert seconds >= 0.03
