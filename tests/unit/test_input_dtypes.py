"""Declared dtypes of columns of numbers: conversion, nulls, and what is refused."""

import decimal

import numpy as np
import pyarrow as pa
import pytest
from sparkgap_server.predict.tensors import InputLayout, to_arguments

FLOATS = pa.list_(pa.float64())


def arguments(*columns, shapes=None, dtypes=None, sparse=None, model=None):
    names = tuple(f"c{index}" for index in range(len(columns)))
    shapes = None if shapes is None else tuple(None if shape is None else tuple(shape) for shape in shapes)
    dtypes = None if dtypes is None else tuple(None if dtype is None else np.dtype(dtype) for dtype in dtypes)
    sparse = None if sparse is None else {index: np.dtype(dtype) for index, dtype in sparse.items()}
    return to_arguments(columns, InputLayout(names, shapes, None, dtypes, sparse), model or len(columns))


NAN = float("nan")
CASES = {
    "double to float": (pa.array([1.5, 2.5]), "float32", [1.5, 2.5]),
    "double to half": (pa.array([1.5, 2.5]), "float16", [1.5, 2.5]),
    "double with null": (pa.array([1.5, None]), "float32", [1.5, NAN]),
    "double to int": (pa.array([1.9, -2.9]), "int32", [1, -2]),
    "int to float": (pa.array([1, 2]), "float32", [1, 2]),
    "int with null to float": (pa.array([1, None]), "float32", [1, NAN]),
    "int to byte wraps": (pa.array([1, 257]), "uint8", [1, 1]),
    "large int stays exact": (pa.array([2**62 + 1]), "int64", [2**62 + 1]),
    "int to bool": (pa.array([0, 5]), "bool", [False, True]),
    "bool to float": (pa.array([True, False]), "float32", [1, 0]),
    "bool with null to float": (pa.array([True, None]), "float32", [1, NAN]),
    "bool to int": (pa.array([True, False]), "int8", [1, 0]),
    "nothing": (pa.array([], pa.float64()), "float32", []),
}


@pytest.mark.parametrize(("column", "dtype", "expected"), CASES.values(), ids=CASES)
def test_a_scalar_column_is_converted(column, dtype, expected):
    (array,) = arguments(column, dtypes=[dtype])
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(("column", "dtype", "expected"), list(CASES.values())[:-1], ids=list(CASES)[:-1])
def test_so_are_the_elements_of_a_tensor_column(column, dtype, expected):
    rows = pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column)
    (array,) = arguments(rows, shapes=[[len(column)]], dtypes=[dtype])
    assert (array.dtype, array.shape) == (np.dtype(dtype), (1, len(column)))
    np.testing.assert_array_equal(array[0], expected)


def test_numbers_that_have_the_dtype_are_not_copied():
    values = np.arange(6, dtype=np.float32)
    column = pa.Array.from_buffers(pa.float32(), 6, [None, pa.py_buffer(values)])
    assert np.shares_memory(arguments(column, dtypes=["float32"])[0], values)
    assert not np.shares_memory(arguments(column, dtypes=["float64"])[0], values)


def test_nulls_do_not_write_into_the_batch():
    values = np.arange(3.0)
    column = pa.Array.from_buffers(pa.float64(), 3, [pa.py_buffer(bytes([0b101])), pa.py_buffer(values)])
    assert np.isnan(arguments(column, dtypes=["float64"])[0][1])
    assert values.tolist() == [0, 1, 2]


def test_each_input_has_its_own_and_none_is_left_as_it_is():
    columns = [pa.array([1.5]), pa.array([2]), pa.array([3])]
    assert [each.dtype for each in arguments(*columns, dtypes=["float32", None, "int8"])] == [
        np.float32, np.int64, np.int8,
    ]  # fmt: skip
    assert [each.dtype for each in arguments(*columns, sparse={2: "int8"})] == [np.float64, np.int64, np.int8]


def test_the_table_of_a_models_only_argument_has_one_dtype():
    struct = pa.StructArray.from_arrays([pa.array([1, None]), pa.array([True, False])], names=["a", "b"])
    (table,) = arguments(struct, dtypes=["float32"])
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, [[1, 1], [NAN, 0]])


def test_a_tensor_without_a_shape_among_several_is_converted_row_by_row():
    rows, _ = arguments(
        pa.array([[1.0], None, [2.0, 3.0]]), pa.array([1, 2, 3]), shapes=[None, None], dtypes=["float32", None]
    )
    assert [None if row is None else (row.dtype, row.tolist()) for row in rows] == [
        (np.float32, [1]), None, (np.float32, [2, 3]),
    ]  # fmt: skip


def test_a_converted_scalar_may_have_shape_one():
    array, _ = arguments(pa.array([1.5, 2.5]), pa.array([1, 2]), shapes=[[1], None], dtypes=["float32", None])
    assert (array.dtype, array.tolist()) == (np.float32, [[1.5], [2.5]])


BAD = {
    "null to int": (pa.array([1, None, None]), None, "int32", "'c0' is null in row 1 of 3 .* int32, which has no null: .* nulls='skip'"),
    "null to bool": (pa.array([1.0, None]), None, "bool", "is null in row 1 of 2 .* declares bool, which has no null"),
    "NaN to int": (pa.array([1.0, 2.0, NAN]), None, "int32", "'c0' is NaN or infinite in row 2 of 3 .* declares int32, which has no such value"),
    "infinity to int": (pa.array([float("inf")]), None, "uint8", "is NaN or infinite in row 0 of 1"),
    "null element": (pa.array([[1, 2], [3, None]]), [2], "int32", "Column 'c0' has an element that is null in row 1 of 2 in the batch"),
    "NaN element": (pa.array([[1.0, 2.0], [NAN, 4.0]]), [2], "int64", "has an element that is NaN or infinite in row 1 of 2"),
    "strings": (pa.array(["a"]), None, "float32", "Column 'c0' has values of type string, and input_dtypes declares float32 for them: only numbers"),
    "decimals": (pa.array([decimal.Decimal("1.50")]), None, "float32", r"of type decimal128\(3, 2\).*cast the column in the query first"),
    "times": (pa.array([1], pa.timestamp("us")), None, "int64", r"of type timestamp\[us\]"),
    "strings in arrays": (pa.array([["a"]]), [1], "float32", "values of type string"),
}  # fmt: skip


@pytest.mark.parametrize(("column", "shape", "dtype", "text"), BAD.values(), ids=BAD)
def test_what_does_not_convert_is_a_value_error_that_says_where(column, shape, dtype, text):
    with pytest.raises(ValueError, match=text):
        arguments(column, shapes=None if shape is None else [shape], dtypes=[dtype])


def test_the_row_of_a_bad_element_is_found_behind_empty_rows_and_in_a_slice():
    column = pa.array([[9], [], [1], [], [2, None]]).slice(1)
    with pytest.raises(ValueError, match="element that is null in row 3 of 4"):
        arguments(column, pa.array([1, 2, 3, 4]), shapes=[None, None], dtypes=["int32", None])


@pytest.mark.parametrize(
    ("dtypes", "sparse", "text"),
    [
        (["float32"], None, "input_dtypes must match the model's inputs: 1 dtypes for 2 inputs"),
        (["float32"] * 3, None, "3 dtypes for 2 inputs"),
        (None, {2: "float32"}, "input_dtypes has a dtype for input 2, but the model has 2 inputs"),
    ],
)
def test_dtypes_that_do_not_match_the_model_are_refused(dtypes, sparse, text):
    with pytest.raises(ValueError, match=text):
        arguments(pa.array([1]), pa.array([2]), dtypes=dtypes, sparse=sparse)
