"""Nested arrays, arrays of structs, maps and structs arrive in a model as pyspark's own predict_batch_udf hands them over."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensor_ways import NEW_YORK, arguments, pyspark_arguments

NOON = dt.datetime(2024, 7, 1, 12, 0, 0, 123456)
FLOATS = pa.list_(pa.float32())
LONGS = pa.list_(pa.int64())
POINT = pa.struct([("x", pa.int64()), ("name", pa.string())])
TIMES = pa.struct([("at", pa.timestamp("us", NEW_YORK)), ("local", pa.timestamp("us")), ("day", pa.date32())])

COLUMNS = {
    "ragged arrays": pa.array([[1.0], [1.0, 2.0], []], FLOATS),
    "ragged arrays with nulls": pa.array([[1, None], [2], None], LONGS),
    "arrays of strings": pa.array([["a", None], [], None]),
    "nested arrays": pa.array([[[1.0, 2.0], [3.0]], [[5.0, 6.0]], []], pa.list_(FLOATS)),
    "nested arrays with nulls": pa.array([[[1.0, None], None], None, [[5.0]]], pa.list_(FLOATS)),
    "nested arrays of integers with nulls": pa.array([[[1, None], None], None, [[5]]], pa.list_(LONGS)),
    "three dimensions": pa.array([[[[1, 2]], [[3]]], []], pa.list_(pa.list_(LONGS))),
    "arrays of structs": pa.array([[{"x": 1, "name": "a"}], [], [{"x": 2, "name": None}, None], None], pa.list_(POINT)),
    "arrays of structs with arrays": pa.array([[{"x": [1, 2]}], [{"x": None}, {"x": []}]], pa.list_(pa.struct([("x", LONGS)]))),
    "arrays of arrays of structs": pa.array([[[{"x": 1}], [{"x": 2}]], [[{"x": 3}]], []], pa.list_(pa.list_(POINT))),
    "structs of structs": pa.array([[{"s": {"x": 1}}], [{"s": None}]], pa.list_(pa.struct([("s", POINT)]))),
    "arrays of structs of times": pa.array([[{"at": NOON, "local": NOON, "day": NOON.date()}], [{"at": None}]], pa.list_(TIMES)),
    "arrays of structs of decimals": pa.array([[{"x": decimal.Decimal("1.5")}]]),
    "maps": pa.array([[("a", 1)], [], [("b", 2), ("c", None)], None], pa.map_(pa.string(), pa.int64())),
    "maps of floats": pa.array([[("a", 1.5)], [("b", float("inf"))]], pa.map_(pa.string(), pa.float32())),
    "maps of arrays": pa.array([[("a", [1, 2])], [("b", None)]], pa.map_(pa.string(), LONGS)),
    "maps of maps": pa.array([[("a", [("b", 1)])], []], pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))),
    "maps of structs": pa.array([[("a", {"x": 1})], [("a", None)]], pa.map_(pa.string(), POINT)),
    "maps of times": pa.array([[("a", NOON)]], pa.map_(pa.string(), pa.timestamp("us", NEW_YORK))),
    "arrays of maps": pa.array([[[("a", 1)]], [], [[("a", 1)], None]], pa.list_(pa.map_(pa.string(), pa.int64()))),
}  # fmt: skip


def described(value: Any) -> str:
    """Types, shapes and values all the way down; pandas' Timestamp is a datetime."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} [{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{described(key)}: {described(each)}' for key, each in value.items())}}}"
    if isinstance(value, dt.datetime):
        return f"datetime {value.isoformat()}"
    return f"{type(value).__name__} {value!r}"


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_one_of_several_inputs(column: pa.Array[Any]) -> None:
    other = pa.array(range(len(column)))
    ours = arguments(column, other, shapes=[None, [1]], model=2)
    assert [described(each) for each in ours] == [
        described(each) for each in pyspark_arguments([column, other], [None, [1]], 2)
    ]


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_parts_of_a_column(column: pa.Array[Any]) -> None:
    for start in range(len(column)):
        for piece in (column.slice(start), column.slice(start, 1)):
            assert described(of_two(piece)) == described(pyspark_of_two(piece))


@pytest.mark.parametrize("kind", [name for name in COLUMNS if name.startswith("maps")])
def test_maps_need_no_shape(kind: str) -> None:
    column = COLUMNS[kind]
    assert described(arguments(column)[0]) == described(pyspark_arguments([column], None, 1)[0])


@pytest.mark.parametrize("kind", ["nested arrays of pairs", "pairs of structs", "pairs of maps"])
def test_a_shape_counts_the_outer_elements(kind: str) -> None:
    column = {
        "nested arrays of pairs": pa.array([[[1.0, 2.0], [3.0]], [[4.0], []]]),
        "pairs of structs": pa.array([[{"x": 1}, {"x": 2}], [{"x": 3}, None]]),
        "pairs of maps": pa.array([[[("a", 1)], []], [[("b", 2)], []]], pa.list_(pa.map_(pa.string(), pa.int64()))),
    }[kind]
    ours = arguments(column, column, shapes=[[2], [2, 1]], model=2)
    theirs = pyspark_arguments([column, column], [[2], [2, 1]], 2)
    assert [described(each) for each in ours] == [described(each) for each in theirs]


def test_arrays_of_arrays_of_structs_of_several_lengths_are_taken_where_pyspark_refuses_them() -> None:
    column = pa.array([[[{"x": 1}], [{"x": 2}, {"x": 3}]]])
    with pytest.raises(ValueError, match="inhomogeneous"):
        pyspark_arguments([column, column], [None, None], 2)
    (row,), _ = arguments(column, column, shapes=[None, None], model=2)
    assert (
        described(row)
        == "object (2,) [object (1,) [{str 'x': int 1}], object (2,) [{str 'x': int 2}, {str 'x': int 3}]]"
    )


@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.lists(st.floats(width=32), max_size=3)), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_any_nested_array(rows: list[Any]) -> None:
    column = pa.array([[], *rows], pa.list_(FLOATS))  # pyspark looks at the first row to tell whether they are arrays
    ours, theirs = (way(column) for way in (of_two, pyspark_of_two))
    assert described(ours) == described(theirs)


def of_two(column: pa.Array[Any]) -> np.ndarray:
    return arguments(column, column, shapes=[None, None], model=2)[0]


def pyspark_of_two(column: pa.Array[Any]) -> np.ndarray:
    return pyspark_arguments([column, column], [None, None], 2)[0]


def test_what_has_no_form_inside_of_another_value_is_refused_in_words() -> None:
    fields = [pa.field("value", pa.binary(), False), pa.field("metadata", pa.binary(), False, {"variant": "true"})]
    column = pa.array([[{"value": b"", "metadata": b""}]], pa.list_(pa.struct(fields)))
    with pytest.raises(ValueError, match=r"variant .* has no NumPy form"):
        arguments(column, column, shapes=[None, None], model=2)
