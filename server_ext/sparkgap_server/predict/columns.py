"""The model host calls this for every batch: what predict returned becomes an Arrow column, which goes back to the JVM.

The checks and the values are those of `pyspark.ml.functions.predict_batch_udf`, which takes the way over pandas.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
)

Array = npt.NDArray[Any]

SCALARS = (ByteType, ShortType, IntegerType, LongType, FloatType, DoubleType, StringType, BooleanType)
"""Return types of one value a row: pyspark's `supported_scalar_types` and booleans."""


ARROW_TYPES: dict[str, pa.DataType] = {
    "b1": pa.bool_(),
    "i1": pa.int8(),
    "i2": pa.int16(),
    "i4": pa.int32(),
    "i8": pa.int64(),
    "u1": pa.uint8(),
    "u2": pa.uint16(),
    "u4": pa.uint32(),
    "u8": pa.uint64(),
    "f4": pa.float32(),
    "f8": pa.float64(),
}
"""By NumPy's name without byte order; `pyarrow.from_numpy_dtype` would import pandas."""


def to_column(predictions: object, rows: int, return_type: DataType) -> pa.Array[Any]:
    """Turn what predict returned for one batch into a column of the declared type.

    Called once a batch, after predict. Numbers of the declared type are not copied, so the column may view the memory
    of `predictions`: send it before predict runs again. Other numbers are cast unchecked (1.5 to the integer 1, too
    large ones wrap), as pyspark does unless `spark.sql.execution.pandas.convertToArrowArraySafely` is set.

    Parameters
    ----------
    predictions
        For a scalar type an array (N,) or (N, 1); for an array type (N, M), one dimension more for each nesting; for a
        struct a dict of arrays, (N,) or (N, M), or a list of N dicts of scalars and 1-D arrays, which may differ in
        length.
    rows
        N, the number of rows of the batch.
    return_type
        As declared by the caller of `predict_batch_udf`.

    Returns
    -------
    pyarrow.Array
        N long, of type `to_arrow_type(return_type)`.

    Raises
    ------
    ValueError
        Kind, shape, length or field names differ from what the return type asks for, or a value does not convert.
    TypeError
        Values of a kind that does not convert, like numbers to strings.
    """
    if isinstance(return_type, StructType):
        return _struct(predictions, rows, return_type)
    if not _supported(return_type):
        raise ValueError(f"Unsupported return type {return_type.simpleString()}")
    if isinstance(return_type, ArrayType):
        if not _is_array(predictions):
            raise ValueError(f"Prediction results for ArrayType must be an ndarray, got: {type(predictions)}")
        return _lists(predictions, rows, return_type, "Prediction results")
    values = _array_like(predictions, "Prediction results")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    elif values.ndim != 1:
        raise ValueError(
            f"Invalid shape for scalar prediction result: expected ({rows},) or ({rows}, 1), got {values.shape}"
        )
    _check_rows(len(values), rows, "Prediction results")
    return _flat(values, return_type, "Prediction results")


def _struct(predictions: object, rows: int, struct: StructType) -> pa.Array[Any]:
    for field in struct.fields:
        if not _supported(field.dataType):
            raise ValueError(f"Unsupported field type in return struct type. {_field(field)}: {field.dataType}")
    if isinstance(predictions, dict):
        _check_names(predictions, struct)
        children = [_column_field(predictions[field.name], rows, field) for field in struct.fields]
    elif isinstance(predictions, list) and predictions and isinstance(predictions[0], dict):
        _check_names(predictions[0], struct)
        _check_rows(len(predictions), rows, "Prediction results")
        for row, prediction in enumerate(predictions):
            if not isinstance(prediction, dict):
                raise ValueError(f"Row {row} of the prediction results is not a dictionary, got: {type(prediction)}")
        children = [_row_field(predictions, rows, field) for field in struct.fields]
    else:
        got = "an empty list" if isinstance(predictions, list) and not predictions else type(predictions)
        raise ValueError(f"Prediction results for StructType must be a dictionary or a list of dictionary, got: {got}")
    return pa.Array.from_buffers(to_arrow_type(struct), rows, [None], children=children)


def _column_field(values: object, rows: int, field: StructField) -> pa.Array[Any]:
    what = f"Prediction results of {_field(field)}"
    if isinstance(field.dataType, ArrayType):
        if not _is_array(values):
            raise ValueError(f"{what} for ArrayType must be an ndarray, got: {type(values)}")
        return _lists(values, rows, field.dataType, what)
    scalars = _array_like(values, what)
    if scalars.ndim != 1:
        raise ValueError(
            f"Prediction results for scalar types must be one-dimensional. {_field(field)} has shape {scalars.shape}, "
            f"expected ({rows},)"
        )
    _check_rows(len(scalars), rows, what)
    return _flat(scalars, field.dataType, what, nullable=field.nullable)


def _row_field(predictions: list[dict[str, Any]], rows: int, field: StructField) -> pa.Array[Any]:
    what = f"Prediction results of {_field(field)}"
    if isinstance(field.dataType, ArrayType):
        return _row_lists(predictions, rows, field, field.dataType, what)
    scalars = [prediction.get(field.name) for prediction in predictions]
    for row, scalar in enumerate(scalars):
        if not (np.isscalar(scalar) or (row and scalar is None)):
            raise ValueError(f"Invalid scalar prediction result. {_field(field)} of row {row} is {type(scalar)}")
    values = np.asarray(scalars)
    if values.dtype.kind not in "biuf":
        values = np.empty(rows, dtype=object)  # NumPy would make strings of numbers that stand beside strings
        values[:] = scalars
    return _flat(values, field.dataType, what, nullable=field.nullable)


def _row_lists(
    predictions: list[dict[str, Any]], rows: int, field: StructField, array: ArrayType, what: str
) -> pa.Array[Any]:
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
        return _lists(np.stack(present), rows, array, what)
    if depth > 1:
        raise ValueError(f"{what} must have the same shape in each row, as they are nested arrays")
    valid = np.array([values is not None for values in lists])
    bounds = np.cumsum([0, *(0 if values is None else len(values) for values in lists)])
    _check_offsets(int(bounds[-1]), what)
    elements = _flat(np.concatenate(present), array.elementType, what, nullable=array.containsNull, nested=True)
    return _list_array(to_arrow_type(array), bounds, elements, valid)


def _lists(values: Array, rows: int, array: ArrayType, what: str) -> pa.Array[Any]:
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
    column = _flat(values.reshape(-1), inner, what, nullable=levels[-1].containsNull, nested=True)
    for axis in range(depth, 0, -1):
        count = int(np.prod(values.shape[:axis], dtype=np.int64))
        column = _list_array(to_arrow_type(levels[axis - 1]), np.arange(count + 1) * values.shape[axis], column)
    return column


def _list_array(
    kind: pa.DataType, bounds: npt.NDArray[np.int64], values: pa.Array[Any], valid: npt.NDArray[np.bool_] | None = None
) -> pa.Array[Any]:
    buffers = [_bitmap(valid), _buffer(bounds.astype(np.int32))]
    return pa.Array.from_buffers(kind, len(bounds) - 1, buffers, children=[values])


def _flat(values: Array, leaf: DataType, what: str, *, nullable: bool = True, nested: bool = False) -> pa.Array[Any]:
    """Column of a scalar type from a 1-D array; `nested` where its values are elements of lists."""
    target = to_arrow_type(leaf)
    kind = values.dtype.kind
    if kind in "biuf" and values.dtype.itemsize <= 8:
        if isinstance(leaf, StringType):
            raise TypeError(f"{what}: cannot convert {values.dtype} to the return type {leaf.simpleString()}")
        return _numbers(values, target, what, nullable=nullable, nested=nested)
    if kind not in "OUT":
        raise ValueError(f"{what}: cannot convert {values.dtype} to the return type {leaf.simpleString()}")
    column = _objects(values.tolist(), target, what)
    if column.null_count and not nullable:
        raise ValueError(f"{what} hold {column.null_count} nulls, but the return type declares them as not nullable")
    return column


def _numbers(values: Array, target: pa.DataType, what: str, *, nullable: bool, nested: bool) -> pa.Array[Any]:
    # pyspark makes NaN null in a column of scalars, by `pandas.isnull`. Inside lists it hands single NumPy values to
    # Arrow, which takes NaN for null only in a Python float; float64 is one, float32 is not, so its NaN stays there.
    nan_is_null = values.dtype.kind == "f" and (not nested or values.dtype == np.float64)
    if values.dtype == np.float16:
        values = values.astype(np.float32)  # Arrow does not cast half floats to booleans
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    valid = ~np.isnan(values) if nan_is_null else None
    if valid is not None and not nullable:
        if not pt.is_floating(target) and not valid.all():
            raise ValueError(f"{what} hold NaN, which becomes null, but the return type declares them as not nullable")
        valid = None
    data = np.packbits(values, bitorder="little") if values.dtype == bool else values
    column = pa.Array.from_buffers(ARROW_TYPES[values.dtype.str[1:]], len(values), [_bitmap(valid), _buffer(data)])
    return column if column.type == target else column.cast(target, safe=False)


def _objects(values: list[Any], target: pa.DataType, what: str) -> pa.Array[Any]:
    try:
        try:
            return pa.array(values, type=target, from_pandas=True)
        except pa.ArrowInvalid:
            inferred: pa.Array[Any] = pa.array(values, from_pandas=True)
            return inferred.cast(target, safe=False)
    except TypeError as error:
        raise TypeError(f"{what}: cannot convert to the return type {target}: {error}") from error
    except (ValueError, OverflowError, NotImplementedError) as error:
        raise ValueError(f"{what}: cannot convert to the return type {target}: {error}") from error


def _bitmap(valid: npt.NDArray[np.bool_] | None) -> pa.Buffer | None:
    return None if valid is None or valid.all() else _buffer(np.packbits(valid, bitorder="little"))


def _buffer(values: Array) -> pa.Buffer:
    return pa.py_buffer(values)  # type: ignore[arg-type]  # the stubs do not know that arrays are buffers


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
