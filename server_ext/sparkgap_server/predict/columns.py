"""The model host calls this for every batch: what predict returned becomes an Arrow column, which goes back to the JVM.

The checks and the values are those of `pyspark.ml.functions.predict_batch_udf`, which takes the way over pandas.
"""

from __future__ import annotations

import datetime
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    ByteType,
    DataType,
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

from sparkgap_server.predict.values import Array, Conversion, arrow_type, flat_column, list_column

SCALARS = (
    ByteType, ShortType, IntegerType, LongType, FloatType, DoubleType, StringType, BooleanType, BinaryType, DateType, TimestampType,
    TimestampNTZType,
)  # fmt: skip
"""Return types of one value a row: pyspark's `supported_scalar_types` and more. The client and Predict.scala name the same ones."""


_DEFAULTS = Conversion()


def to_column(
    predictions: object, rows: int, return_type: DataType, conversion: Conversion = _DEFAULTS
) -> pa.Array[Any]:
    """Turn what predict returned for one batch into a column of the declared type.

    Called once a batch, after predict. Numbers of the declared type are not copied, so the column may view the memory
    of `predictions`: send it before predict runs again. Other numbers are cast, and refused where the declared type cannot
    hold them (1.5 in an integer, 300 in a byte), unless the session lets them be cut.

    Parameters
    ----------
    predictions
        For a scalar type an array (N,) or (N, 1); for an array type (N, M), one dimension more for each nesting; for a
        struct a dict of arrays, (N,) or (N, M), or a list of N dicts of scalars and 1-D arrays, which may differ in
        length. Times are datetime64 or datetime objects, NaT is null; binary values are bytes objects, or 'S' or 'V'
        arrays, of which NumPy drops the zeros at the end of an 'S' value.
    rows
        N, the number of rows of the batch.
    return_type
        As declared by the caller of `predict_batch_udf`.
    conversion
        What the session says about it.

    Returns
    -------
    pyarrow.Array
        N long, of type `arrow_type(return_type)`.

    Raises
    ------
    ValueError
        Kind, shape, length or field names differ from what the return type asks for, or a value does not convert.
    TypeError
        Values of a kind that does not convert, like numbers to strings.
    """
    if isinstance(return_type, StructType):
        return _struct(predictions, rows, return_type, conversion)
    if not _supported(return_type):
        raise ValueError(f"Unsupported return type {return_type.simpleString()}")
    if isinstance(return_type, ArrayType):
        if not _is_array(predictions):
            raise ValueError(f"Prediction results for ArrayType must be an ndarray, got: {type(predictions)}")
        return _lists(predictions, rows, return_type, "Prediction results", conversion)
    values = _array_like(predictions, "Prediction results")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    elif values.ndim != 1:
        raise ValueError(
            f"Invalid shape for scalar prediction result: expected ({rows},) or ({rows}, 1), got {values.shape}"
        )
    _check_rows(len(values), rows, "Prediction results")
    return flat_column(values, return_type, "Prediction results", conversion)


def empty_column(return_type: DataType) -> pa.Array[Any]:
    """The predictions of a batch of which the model sees no row."""
    column: pa.Array[Any] = pa.array([], arrow_type(return_type))
    return column


def _struct(predictions: object, rows: int, struct: StructType, conversion: Conversion) -> pa.Array[Any]:
    for field in struct.fields:
        if not _supported(field.dataType):
            raise ValueError(f"Unsupported field type in return struct type. {_field(field)}: {field.dataType}")
    if isinstance(predictions, dict):
        _check_names(predictions, struct)
        children = [_column_field(predictions[field.name], rows, field, conversion) for field in struct.fields]
    elif isinstance(predictions, list) and predictions and isinstance(predictions[0], dict):
        _check_names(predictions[0], struct)
        _check_rows(len(predictions), rows, "Prediction results")
        for row, prediction in enumerate(predictions):
            if not isinstance(prediction, dict):
                raise ValueError(f"Row {row} of the prediction results is not a dictionary, got: {type(prediction)}")
        children = [_row_field(predictions, rows, field, conversion) for field in struct.fields]
    else:
        got = "an empty list" if isinstance(predictions, list) and not predictions else type(predictions)
        raise ValueError(f"Prediction results for StructType must be a dictionary or a list of dictionary, got: {got}")
    return pa.Array.from_buffers(arrow_type(struct), rows, [None], children=children)


def _column_field(values: object, rows: int, field: StructField, conversion: Conversion) -> pa.Array[Any]:
    what = f"Prediction results of {_field(field)}"
    if isinstance(field.dataType, ArrayType):
        if not _is_array(values):
            raise ValueError(f"{what} for ArrayType must be an ndarray, got: {type(values)}")
        return _lists(values, rows, field.dataType, what, conversion)
    scalars = _array_like(values, what)
    if scalars.ndim != 1:
        raise ValueError(
            f"Prediction results for scalar types must be one-dimensional. {_field(field)} has shape {scalars.shape}, "
            f"expected ({rows},)"
        )
    _check_rows(len(scalars), rows, what)
    return flat_column(scalars, field.dataType, what, conversion, nullable=field.nullable)


def _row_field(
    predictions: list[dict[str, Any]], rows: int, field: StructField, conversion: Conversion
) -> pa.Array[Any]:
    what = f"Prediction results of {_field(field)}"
    if isinstance(field.dataType, ArrayType):
        return _row_lists(predictions, rows, field, conversion)
    scalars = [prediction.get(field.name) for prediction in predictions]
    for row, scalar in enumerate(scalars):
        if not (np.isscalar(scalar) or isinstance(scalar, datetime.date) or (row and scalar is None)):
            raise ValueError(f"Invalid scalar prediction result. {_field(field)} of row {row} is {type(scalar)}")
    values = np.asarray(scalars)
    if values.dtype.kind not in "biufM":
        # NumPy would make strings of numbers that stand beside strings, and drop the zeros at the end of bytes.
        values = np.empty(rows, dtype=object)
        values[:] = scalars
    return flat_column(values, field.dataType, what, conversion, nullable=field.nullable)


def _row_lists(
    predictions: list[dict[str, Any]], rows: int, field: StructField, conversion: Conversion
) -> pa.Array[Any]:
    array, what = field.dataType, f"Prediction results of {_field(field)}"
    depth = _depth(array)
    for row, prediction in enumerate(predictions):
        if field.name not in prediction:
            raise ValueError(f"Row {row} of the prediction results lacks {_field(field)}")
    lists = [prediction[field.name] for prediction in predictions]
    for row, values in enumerate(lists):
        if values is None and row and field.nullable:
            continue
        if not _is_array(values) or values.ndim != depth:
            got = f"shape {values.shape}" if _is_array(values) else type(values)
            raise ValueError(
                f"Prediction results for ArrayType must be {_dimensional(depth)} in each row. "
                f"{_field(field)} of row {row} has {got}"
            )
    present = [values for values in lists if values is not None]
    if len(present) == rows and len({values.shape for values in present}) == 1:
        return _lists(np.stack(present), rows, array, what, conversion)
    if depth > 1:
        raise ValueError(f"{what} must have the same shape in each row, as they are nested arrays")
    valid = np.array([values is not None for values in lists])
    bounds = np.cumsum([0, *(0 if values is None else len(values) for values in lists)])
    _check_offsets(int(bounds[-1]), what)
    elements = flat_column(
        np.concatenate(present), array.elementType, what, conversion, nullable=array.containsNull, nested=True
    )
    return list_column(arrow_type(array), bounds, elements, valid)


def _lists(values: Array, rows: int, array: ArrayType, what: str, conversion: Conversion) -> pa.Array[Any]:
    """Nested list column over the values of a C-ordered array: offsets are arithmetic, no row becomes an object."""
    depth = _depth(array)
    if values.ndim != depth + 1:
        raise ValueError(
            f"Prediction results for ArrayType must be {_dimensional(depth + 1)}. {what} have shape {values.shape} for "
            f"return type {array.simpleString()}"
        )
    _check_rows(len(values), rows, what)
    _check_offsets(values.size, what)
    levels: list[ArrayType] = [array]
    while isinstance(inner := levels[-1].elementType, ArrayType):
        levels.append(inner)
    column = flat_column(values.reshape(-1), inner, what, conversion, nullable=levels[-1].containsNull, nested=True)
    for axis in range(depth, 0, -1):
        count = int(np.prod(values.shape[:axis], dtype=np.int64))
        column = list_column(arrow_type(levels[axis - 1]), np.arange(count + 1) * values.shape[axis], column)
    return column


def _is_array(values: object) -> TypeGuard[Array]:
    """An ndarray that is not masked: masked values would come out as if they were not."""
    return isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray)


def _array_like(values: object, what: str) -> Array:
    # pandas Series and jax arrays have a NumPy dtype and pass in pyspark too; torch tensors and lists do not.
    if isinstance(values, np.ma.MaskedArray) or not isinstance(getattr(values, "dtype", None), np.dtype):
        raise ValueError(
            f"{what} must be a numpy.ndarray, got: {type(values)}; convert it in predict, a torch tensor by "
            ".detach().cpu().numpy()"
        )
    array: Array = np.asarray(values)
    return array


def _supported(data_type: DataType) -> bool:
    while isinstance(data_type, ArrayType):
        data_type = data_type.elementType
    return isinstance(data_type, SCALARS)


def _depth(array: ArrayType) -> int:
    return 1 + (_depth(array.elementType) if isinstance(array.elementType, ArrayType) else 0)


def _dimensional(dimensions: int) -> str:
    return {1: "one-dimensional", 2: "two-dimensional"}.get(dimensions, f"of {dimensions} dimensions")


def _field(field: StructField) -> str:
    return f"field {field.name!r}"


def _check_rows(got: int, rows: int, what: str) -> None:
    if got != rows:
        raise ValueError(f"Prediction results must have same length as input data: {what} have {got}, the batch {rows}")


def _check_offsets(values: int, what: str) -> None:
    if values > np.iinfo(np.int32).max:
        raise ValueError(
            f"{what} have {values} values; lower batch_size to keep them below 2**31, as Arrow counts them"
        )


def _check_names(prediction: dict[str, Any], struct: StructType) -> None:
    if set(prediction) != set(struct.names):
        raise ValueError(
            "Prediction result columns did not match expected return_type columns: "
            f"expected {struct.names}, got: {list(prediction)}"
        )
