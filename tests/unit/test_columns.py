"""Predictions to Arrow: tables of examples, and a comparison with pyspark's own way over pandas."""

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyspark.ml.functions import _validate_and_transform_prediction_result, supported_scalar_types
from pyspark.sql.conversion import PandasToArrowConversion
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DayTimeIntervalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    ShortType,
    StringType,
    StructField,
    StructType,
)
from sparkgap_server.predict import columns
from sparkgap_server.predict.columns import SCALARS
from sparkgap_server.predict.values import Conversion

to_column = partial(columns.to_column, conversion=Conversion(checked=False))

NAN = float("nan")
FLOATS = ArrayType(FloatType())
LABELLED = StructType([StructField("label", IntegerType()), StructField("scores", FLOATS)])


def pyspark_column(predictions, rows, return_type):
    """What a worker sends for a pandas UDF, with convertToArrowArraySafely=false."""
    if isinstance(predictions, dict):
        predictions = dict(predictions)  # pyspark writes into it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = _validate_and_transform_prediction_result(predictions, rows, return_type)
        schema = StructType([StructField("_0", return_type)])
        batch = PandasToArrowConversion.convert(
            [series], schema, timezone="UTC", safecheck=False, arrow_cast=True, assign_cols_by_name=True
        )
    return batch.column(0)


def assert_same(ours, theirs):
    assert ours.type.equals(theirs.type)
    ours.validate(full=True)
    assert repr(ours.to_pylist()) == repr(theirs.to_pylist())  # by repr, as NaN is not itself


def typed(values, dtype):
    return np.array(values, dtype)


SCALAR_CASES = {
    "float": (typed([1, 2.5], "f4"), FloatType(), [1, 2.5]),
    "one column": (typed([[1], [2.5]], "f4"), FloatType(), [1, 2.5]),
    "double to float": (typed([1, 2.5], "f8"), FloatType(), [1, 2.5]),
    "half to double": (typed([1, 2.5], "f2"), DoubleType(), [1, 2.5]),
    "NaN is null": (typed([1, NAN], "f4"), FloatType(), [1, None]),
    "NaN to int is null": (typed([1.9, NAN], "f8"), IntegerType(), [1, None]),
    "int to float": (typed([1, 2**24 + 1], "i8"), FloatType(), [1, 2**24]),
    "int wraps": (typed([1, 2**31 + 5], "i8"), IntegerType(), [1, 5 - 2**31]),
    "unsigned": (typed([1, 255], "u1"), ShortType(), [1, 255]),
    "byte": (typed([1, 127], "i4"), ByteType(), [1, 127]),
    "bool to int": (typed([True, False], "?"), LongType(), [1, 0]),
    "unicode": (typed(["a", "bcd"], "U"), StringType(), ["a", "bcd"]),
    "object strings": (typed(["a", None, NAN], object), StringType(), ["a", None, None]),
    "parsed": (typed(["1", "22"], "U"), IntegerType(), [1, 22]),
    "objects wrap": (typed([None, 2**31 + 5], object), IntegerType(), [None, 5 - 2**31]),
    "objects": (typed([1, None, 2.7], object), IntegerType(), [1, None, 2]),
    "variable strings": (typed(["a", "bcd"], np.dtypes.StringDType()), StringType(), ["a", "bcd"]),
    "strided": (np.arange(6.0)[::2], DoubleType(), [0, 2, 4]),
    "Series": (pd.Series([1.0, 2.0]), FloatType(), [1, 2]),
}


@pytest.mark.parametrize(("values", "return_type", "expected"), SCALAR_CASES.values(), ids=SCALAR_CASES)
def test_scalar_predictions_become_what_pyspark_makes_of_them(values, return_type, expected):
    column = to_column(values, len(values), return_type)
    assert column.to_pylist() == expected
    assert_same(column, pyspark_column(values, len(values), return_type))


LIST_CASES = {
    "float": (typed([[1, 2], [3, 4]], "f4"), FLOATS, [[1, 2], [3, 4]]),
    "double NaN is null": (typed([[1, NAN]], "f8"), FLOATS, [[1, None]]),
    "int to double": (typed([[1, 2]], "i4"), ArrayType(DoubleType()), [[1, 2]]),
    "double to int": (typed([[1.9, NAN]], "f8"), ArrayType(IntegerType()), [[1, None]]),
    "column order": (np.asfortranarray([[1, 2], [3, 4.0]]), FLOATS, [[1, 2], [3, 4]]),
    "transposed": (typed([[1, 2], [3, 4]], "f8").T, FLOATS, [[1, 3], [2, 4]]),
    "bool": (typed([[True, False, True]] * 3, "?"), ArrayType(BooleanType()), [[True, False, True]] * 3),
    "strings": (typed([["a", "b"], ["c", None]], object), ArrayType(StringType()), [["a", "b"], ["c", None]]),
    "unicode": (typed([["a", "b"]], "U"), ArrayType(StringType()), [["a", "b"]]),
    "empty lists": (np.zeros((2, 0)), FLOATS, [[], []]),
    "no nulls declared": (typed([[1, 2]], "f4"), ArrayType(FloatType(), False), [[1, 2]]),
}


@pytest.mark.parametrize(("values", "return_type", "expected"), LIST_CASES.values(), ids=LIST_CASES)
def test_list_predictions_become_what_pyspark_makes_of_them(values, return_type, expected):
    column = to_column(values, len(values), return_type)
    assert column.to_pylist() == expected
    assert_same(column, pyspark_column(values, len(values), return_type))


def test_float_nan_in_a_list_stays_nan_as_in_pyspark():
    values = typed([[1, NAN]], "f4")
    column = to_column(values, 1, FLOATS)
    assert column.values.null_count == 0
    assert_same(column, pyspark_column(values, 1, FLOATS))


STRUCT_CASES = {
    "columns": {"label": typed([1, 2], "i8"), "scores": typed([[1, 2], [3, 4]], "f4")},
    "columns in another order": {"scores": typed([[1, 2], [3, 4]], "f4"), "label": typed([1, 2], "i8")},
    "columns with NaN": {"label": typed([1, NAN], "f4"), "scores": typed([[1, NAN], [3, 4]], "f8")},
    "rows": [{"label": 1, "scores": typed([1, 2], "f4")}, {"label": np.int64(2), "scores": typed([3, 4], "f4")}],
    "ragged rows": [{"label": 1, "scores": typed([1, NAN], "f8")}, {"label": 2, "scores": typed([3], "f8")}],
    "rows with nulls": [{"label": 1, "scores": typed([1, 2], "f4")}, {"label": None, "scores": None}],
    "rows without a scalar": [{"label": 1, "scores": typed([1], "f4")}, {"scores": typed([2], "f4")}],
    "rows of floats": [{"label": 1.5, "scores": typed([1], "f4")}, {"label": NAN, "scores": typed([2], "f4")}],
}


@pytest.mark.parametrize("predictions", STRUCT_CASES.values(), ids=STRUCT_CASES)
def test_struct_predictions_become_what_pyspark_makes_of_them(predictions):
    assert_same(to_column(predictions, 2, LABELLED), pyspark_column(predictions, 2, LABELLED))


def test_a_prediction_dict_is_left_as_it_was():
    predictions = STRUCT_CASES["columns"]
    to_column(predictions, 2, LABELLED)
    assert [type(values) for values in predictions.values()] == [np.ndarray, np.ndarray]


def test_booleans_may_be_returned_though_pyspark_refuses_them():
    assert to_column(typed([True, False], "?"), 2, BooleanType()).to_pylist() == [True, False]
    assert to_column(typed([0, 2.5], "f2"), 2, BooleanType()).to_pylist() == [False, True]
    struct = StructType([StructField("yes", BooleanType())])
    assert to_column([{"yes": True}, {"yes": None}], 2, struct).to_pylist() == [{"yes": True}, {"yes": None}]


def test_every_scalar_type_of_pyspark_may_be_returned():
    assert set(supported_scalar_types) < set(SCALARS)
    for kind in supported_scalar_types:
        one = typed(["1"], object) if kind is StringType else typed([1], "f8")
        assert to_column(one, 1, kind()).type == to_arrow_type(kind())


def test_more_dimensions_are_nested_lists():
    values = np.arange(12.0).reshape(2, 3, 2)
    kind = ArrayType(ArrayType(DoubleType(), False), False)
    column = to_column(values, 2, kind)
    column.validate(full=True)
    assert column.type.equals(to_arrow_type(kind))
    assert column.to_pylist() == values.tolist()
    struct = StructType([StructField("boxes", kind)])
    assert to_column({"boxes": values}, 2, struct).to_pylist() == [{"boxes": row} for row in values.tolist()]
    by_row = [{"boxes": row} for row in values]
    assert to_column(by_row, 2, struct).equals(to_column({"boxes": values}, 2, struct))


def test_other_byte_orders_are_swapped():
    assert to_column(typed([1, 2.5], ">f8"), 2, FloatType()).to_pylist() == [1, 2.5]


@pytest.mark.parametrize("shape", [(6,), (6, 1)], ids=str)
def test_numbers_of_the_declared_type_are_not_copied(shape):
    values = np.arange(6, dtype=np.float32)
    scalars = to_column(values.reshape(shape), 6, FloatType())
    lists = to_column(values.reshape(3, 2), 3, FLOATS)
    assert np.shares_memory(np.frombuffer(scalars.buffers()[1], np.float32), values)
    assert np.shares_memory(np.frombuffer(lists.values.buffers()[1], np.float32), values)


def test_where_nulls_are_not_declared_float_nan_stays_nan():
    # pyspark sends a null there, which Spark reads as 0.0.
    lists = to_column(typed([[1, NAN]], "f8"), 1, ArrayType(DoubleType(), False))
    struct = StructType([StructField("score", FloatType(), False)])
    fields = to_column({"score": typed([1, NAN], "f4")}, 2, struct)
    assert lists.values.null_count == fields.field(0).null_count == 0
    assert np.isnan(lists.to_pylist()[0][1])
    assert np.isnan(fields.to_pylist()[1]["score"])
    assert fields.type.equals(to_arrow_type(struct))


def needed(kind):
    return StructType([StructField("a", kind, False)])


def rows_of(*values):
    return [{"a": value} for value in values]


BYTES = typed([b"1", b"2"], "S")
A_FLOAT, A_LIST = StructType([StructField("a", FloatType())]), StructType([StructField("a", FLOATS)])
BAD = {
    "list": ([1.0, 2.0], FloatType(), r"must be a numpy\.ndarray, got: <class 'list'>"),
    "None": (None, FloatType(), "got: <class 'NoneType'>"),
    "number": (np.float32(1), FloatType(), r"expected \(2,\) or \(2, 1\), got \(\)"),
    "two columns": (np.ones((2, 2)), FloatType(), r"Invalid shape.*expected \(2,\) or \(2, 1\), got \(2, 2\)"),
    "three dimensions": (np.ones((2, 1, 1)), FloatType(), r"got \(2, 1, 1\)"),
    "too many": (np.ones(3), FloatType(), "same length as input data: .* have 3, the batch 2"),
    "masked": (np.ma.masked_array([1.0, 2.0], [False, True]), FloatType(), "MaskedArray"),
    "complex": (np.ones(2, complex), FloatType(), "cannot convert complex128 to the return type float"),
    "long double": (np.ones(2, np.longdouble), FloatType(), "cannot convert .*float(128|96)|longdouble"),
    "times": (typed(["2024-01-01"] * 2, "M8[s]"), LongType(), "cannot convert datetime64"),
    "bytes": (BYTES, StringType(), r"cannot convert \|S1 to the return type string"),
    "words": (typed(["1", "x"], "U"), IntegerType(), "cannot convert to the return type int32"),
    "list for lists": ([[1.0], [2.0]], FLOATS, "for ArrayType must be an ndarray, got: <class 'list'>"),
    "1-D for lists": (np.ones(2), FLOATS, r"must be two-dimensional\..*shape \(2,\) .*array<float>"),
    "3-D for lists": (np.ones((2, 1, 1)), FLOATS, r"must be two-dimensional\..*shape \(2, 1, 1\)"),
    "2-D for nested": (np.ones((2, 1)), ArrayType(FLOATS), "must be of 3 dimensions"),
    "too few lists": (np.ones((1, 2)), FLOATS, "have 1, the batch 2"),
    "interval": (np.ones(2), DayTimeIntervalType(), "Unsupported return type interval day to second"),
    "lists of maps": (
        np.ones((2, 1)),
        ArrayType(MapType(StringType(), FloatType())),
        "Unsupported return type array<map",
    ),
    "struct in struct": ({}, StructType([StructField("a", LABELLED)]), "Unsupported field type.*field 'a'"),
    "array for struct": (np.ones(2), A_FLOAT, "a dictionary or a list of dictionary, got: <class 'numpy.ndarray'>"),
    "no rows for struct": ([], A_FLOAT, "got: an empty list"),
    "missing field": ({}, A_FLOAT, r"did not match .*expected \['a'\], got: \[\]"),
    "further field": ({"a": np.ones(2), "b": 1}, A_FLOAT, r"expected \['a'\], got: \['a', 'b'\]"),
    "other rows": ([{"b": 1}, {"b": 1}], A_FLOAT, r"expected \['a'\], got: \['b'\]"),
    "2-D field": ({"a": np.ones((2, 1))}, A_FLOAT, r"one-dimensional\. field 'a' has shape \(2, 1\), expected \(2,\)"),
    "list field": ({"a": [1, 2]}, A_FLOAT, "field 'a' must be a numpy.ndarray, got: <class 'list'>"),
    "short field": ({"a": np.ones(1)}, A_FLOAT, "field 'a' have 1, the batch 2"),
    "1-D list field": ({"a": np.ones(2)}, A_LIST, r"two-dimensional\..*field 'a' have shape \(2,\)"),
    "list for list field": ({"a": [[1], [2]]}, A_LIST, "field 'a' for ArrayType must be an ndarray"),
    "short list field": ({"a": np.ones((1, 2))}, A_LIST, "field 'a' have 1, the batch 2"),
    "one row": (rows_of(1.0), A_FLOAT, "have 1, the batch 2"),
    "row that is no dict": ([{"a": 1.0}, 2.0], A_FLOAT, "Row 1 .*not a dictionary, got: <class 'float'>"),
    "row without scalar": (
        rows_of(1.0, np.ones(2)),
        A_FLOAT,
        "Invalid scalar.*field 'a' of row 1 is <class 'numpy.ndarr",
    ),
    "first row null": (rows_of(None, 1.0), A_FLOAT, "field 'a' of row 0 is <class 'NoneType'>"),
    "row of a matrix": (
        rows_of(np.ones((1, 1)), np.ones(1)),
        A_LIST,
        r"one-dimensional in each row.*row 0 has shape \(1, 1",
    ),
    "row of a list": (rows_of(np.ones(1), [1.0]), A_LIST, "row 1 has <class 'list'>"),
    "row without list": ([{"a": np.ones(1)}, {}], A_LIST, "Row 1 of the prediction results lacks field 'a'"),
    "masked lists": (np.ma.masked_array(np.ones((2, 1)), [[False], [True]]), FLOATS, "MaskedArray"),
    "masked row": (rows_of(np.ma.masked_array([1.0], [True]), np.ones(1)), A_LIST, "row 0 has .*MaskedArray"),
    "null in needed field": (rows_of("x", None), needed(StringType()), "hold 1 nulls, but .* not nullable"),
    "NaN in needed int": ({"a": typed([1, NAN], "f8")}, needed(IntegerType()), "hold NaN.* not nullable"),
    "null list needed": (rows_of(np.ones(1), None), needed(FLOATS), "row 1 has <class 'NoneType'>"),
    "ragged nested": (rows_of(np.ones((1, 1)), np.ones((2, 1))), needed(ArrayType(FLOATS)), "same shape in each row"),
}


@pytest.mark.parametrize(("predictions", "return_type", "text"), BAD.values(), ids=BAD)
def test_bad_predictions_are_a_value_error_that_says_what_was_expected_and_found(predictions, return_type, text):
    with pytest.raises(ValueError, match=text):
        to_column(predictions, 2, return_type)


PYSPARK_TAKES = {"times", "row of a list", "null in needed field", "NaN in needed int", "null list needed"}
CRASHES_PYSPARK = {"bytes"}  # pyarrow reads past the end of them


@pytest.mark.parametrize("case", sorted(set(BAD) - CRASHES_PYSPARK))
def test_pyspark_refuses_the_same_predictions(case):
    predictions, return_type, _ = BAD[case]
    if case in PYSPARK_TAKES:
        pyspark_column(predictions, 2, return_type)
        return
    with pytest.raises(Exception, match=r".|^$"):
        pyspark_column(predictions, 2, return_type)


@pytest.mark.parametrize(
    ("values", "return_type"),
    [
        (np.ones(2), StringType()),
        (np.ones((2, 1)), ArrayType(StringType())),
        (typed([1, "a"], object), StringType()),
    ],
    ids=["floats", "lists of floats", "objects"],
)
def test_numbers_do_not_become_strings(values, return_type):
    with pytest.raises(TypeError):
        pyspark_column(values, 2, return_type)
    with pytest.raises(TypeError, match=r"Prediction results: cannot convert .*to the return type string"):
        to_column(values, 2, return_type)


def test_numbers_beside_strings_do_not_become_strings():
    struct = StructType([StructField("a", StringType())])
    with pytest.raises(TypeError, match="field 'a': cannot convert"):
        to_column(rows_of("x", 1), 2, struct)


def test_torch_tensors_are_refused():
    torch = pytest.importorskip("torch")
    for predictions, kind in [
        (torch.ones(2), FloatType()),
        (torch.ones(2, 2), FLOATS),
        ({"a": torch.ones(2)}, A_FLOAT),
    ]:
        with pytest.raises(ValueError, match=r"ndarray, got: <class 'torch\.Tensor'>"):
            to_column(predictions, 2, kind)


@pytest.mark.parametrize("by_row", [False, True], ids=["columns", "rows"])
def test_more_values_than_offsets_reach_are_refused_before_a_copy(by_row):
    many = np.broadcast_to(np.int8(0), (2, 2**30))
    struct = StructType([StructField("a", ArrayType(ByteType()))])
    with pytest.raises(ValueError, match=r"field 'a' have 21474836\d\d values; lower batch_size"):
        to_column(rows_of(many[0], many[0][1:], many[0][:9]) if by_row else {"a": many}, 2 + by_row, struct)


def test_numbers_do_not_import_pandas():
    code = """
import sys, numpy as np
from pyspark.sql.types import *
from sparkgap_server.predict.columns import to_column
for dtype in "?", "i1", "u8", "f2", "f4", "f8":
    for kind in ByteType(), LongType(), FloatType(), BooleanType():
        to_column(np.ones(2, dtype), 2, kind)
        to_column(np.ones((2, 3), dtype), 2, ArrayType(kind))
        to_column({"a": np.array([1, 0], dtype)}, 2, StructType([StructField("a", kind)]))
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


NUMBERS = [ByteType(), ShortType(), IntegerType(), LongType(), FloatType(), DoubleType()]
# A float beyond an integer's range casts to what the processor likes, so floats stay where all integers reach.
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u4", "f2", "f4", "f8"]


def elements(dtype):
    kind = np.dtype(dtype)
    if kind.kind != "f":
        return None
    return st.floats(-100, 100, width=kind.itemsize * 8) | st.just(NAN)


@st.composite
def predictions_for(draw):
    """Predictions, rows and return type; at times of a wrong shape or length."""
    rows = draw(st.integers(1, 4))
    dtype, kind = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(NUMBERS))
    shape = draw(st.sampled_from([(rows,), (rows, 1), (rows,), (rows + 1,), (rows, 2)]))
    if draw(st.booleans()):
        kind = ArrayType(kind)
        shape = draw(st.sampled_from([(rows, 1), (rows, 3), (rows, 0), (rows,), (rows + 1, 2), (rows, 1, 2)]))
    values = draw(hnp.arrays(dtype, shape, elements=elements(dtype)))
    if (
        isinstance(kind, ArrayType)
        and dtype in ("f2", "f4")
        and not isinstance(kind.elementType, (FloatType, DoubleType))
    ):
        values = np.nan_to_num(values)  # NaN stays NaN in lists of these, and its cast to an integer is the processor's
    if draw(st.booleans()):
        return values, rows, kind
    struct = StructType([StructField("a", kind), StructField("b", LongType())])
    if draw(st.booleans()):
        return {"b": np.arange(rows), "a": values}, rows, struct
    by_row = [{"a": value, "b": row} for row, value in enumerate(values)]
    return by_row, rows, struct


@given(predictions_for())
def test_all_predictions_become_what_pyspark_makes_of_them(case):
    predictions, rows, return_type = case
    try:
        theirs = pyspark_column(predictions, rows, return_type)
    except (ValueError, AttributeError):
        with pytest.raises(ValueError, match=r"."):
            to_column(predictions, rows, return_type)
        return
    assert_same(to_column(predictions, rows, return_type), theirs)


class TestChecked:
    """As Spark has it by default: what the declared type cannot hold is refused."""

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            (typed([1, 1.5], "f8"), IntegerType()),
            (typed([1, 2**31], "i8"), IntegerType()),
            (typed([1, 300], "i4"), ByteType()),
        ],
    )
    def test_what_does_not_fit_is_refused(self, values, kind):
        for predictions, return_type in (
            (values, kind),
            (values.reshape(2, 1), ArrayType(kind)),
            ({"a": values}, StructType([StructField("a", kind)])),
        ):
            with pytest.raises(ValueError, match=r"cannot convert .* to the return type int.*astype"):
                columns.to_column(predictions, 2, return_type)

    @pytest.mark.parametrize(
        ("values", "kind", "expected"),
        [
            (typed([1, 2], "f8"), IntegerType(), [1, 2]),
            (typed([1, NAN], "f8"), IntegerType(), [1, None]),
            (typed([1, 127], "i8"), ByteType(), [1, 127]),
            (typed([1, 0.1], "f8"), FloatType(), [1, np.float32(0.1)]),
        ],
    )
    def test_what_fits_is_cast(self, values, kind, expected):
        assert columns.to_column(values, 2, kind).to_pylist() == expected
