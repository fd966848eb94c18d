"""Arrays of a prediction's values to flat Arrow columns, for `columns`, which knows rows, lists and structs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import BinaryType, DataType, DateType, StringType, TimestampNTZType, TimestampType

from sparkgap_server.predict.times import time_column

Array = npt.NDArray[Any]

_TIMES = (DateType, TimestampType, TimestampNTZType)

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


@dataclass(frozen=True)
class Conversion:
    """What the session says about values on their way to Spark.

    Parameters
    ----------
    time_zone
        In which naive times of a `TimestampType` are meant; the later of two that a change of the clock makes equal.
    checked
        Refuse numbers that the declared type cannot hold, instead of cutting them: Spark's setting
        `spark.sql.execution.pandas.convertToArrowArraySafely`, on by default.
    """

    time_zone: str = "UTC"
    checked: bool = True


def arrow_type(data_type: DataType) -> pa.DataType:
    """The Arrow type of a return type; Spark labels its times with UTC on the way back from Python."""
    found: pa.DataType = to_arrow_type(data_type, timezone="UTC")
    return found


def flat_column(
    values: Array, leaf: DataType, what: str, conversion: Conversion, *, nullable: bool = True, nested: bool = False
) -> pa.Array[Any]:
    """Column of a scalar type from a 1-D array; `nested` where its values are elements of lists.

    Raises
    ------
    ValueError, TypeError
        A value does not convert, or is null where `nullable` is false; the text begins with `what`.
    """
    kind = values.dtype.kind
    is_number = kind in "biuf" and values.dtype.itemsize <= 8
    if is_number and isinstance(leaf, (StringType, BinaryType, *_TIMES)):
        raise TypeError(f"{what}: cannot convert {values.dtype} to the return type {leaf.simpleString()}")
    if is_number:
        return _numbers(values, arrow_type(leaf), what, conversion, nullable=nullable, nested=nested)
    if kind in ("MO" if isinstance(leaf, _TIMES) else "OUTSV" if isinstance(leaf, BinaryType) else "OUT"):
        column = _column(values, leaf, what, conversion)
    else:
        raise ValueError(f"{what}: cannot convert {values.dtype} to the return type {leaf.simpleString()}")
    if column.null_count and not nullable:
        raise ValueError(f"{what} hold {column.null_count} nulls, but the return type declares them as not nullable")
    return column


def list_column(
    kind: pa.DataType, bounds: npt.NDArray[np.int64], values: pa.Array[Any], valid: npt.NDArray[np.bool_] | None = None
) -> pa.Array[Any]:
    """A list column whose rows lie end to end in `values`, between neighbouring `bounds`."""
    buffers = [_bitmap(valid), _buffer(bounds.astype(np.int32))]
    return pa.Array.from_buffers(kind, len(bounds) - 1, buffers, children=[values])


def _column(values: Array, leaf: DataType, what: str, conversion: Conversion) -> pa.Array[Any]:
    if isinstance(leaf, _TIMES):
        return time_column(values, leaf, what, conversion.time_zone)
    return _objects(values.tolist(), arrow_type(leaf), what, conversion)


def _numbers(
    values: Array, target: pa.DataType, what: str, conversion: Conversion, *, nullable: bool, nested: bool
) -> pa.Array[Any]:
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
    return column if column.type == target else _cast(column, target, what, conversion)


def _cast(column: pa.Array[Any], target: pa.DataType, what: str, conversion: Conversion) -> pa.Array[Any]:
    try:
        return column.cast(target, safe=conversion.checked)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{what}: cannot convert {column.type} to the return type {target}: {error}. Convert in predict, with astype for example, or let "
            "the values be cut: spark.sql.execution.pandas.convertToArrowArraySafely=false"
        ) from error


def _objects(values: list[Any], target: pa.DataType, what: str, conversion: Conversion) -> pa.Array[Any]:
    try:
        try:
            return pa.array(values, type=target, from_pandas=True)
        except pa.ArrowInvalid:
            return _cast(pa.array(values, from_pandas=True), target, what, conversion)
    except TypeError as error:
        raise TypeError(f"{what}: cannot convert to the return type {target}: {error}") from error
    except (ValueError, OverflowError, NotImplementedError) as error:
        raise ValueError(f"{what}: cannot convert to the return type {target}: {error}") from error


def _bitmap(valid: npt.NDArray[np.bool_] | None) -> pa.Buffer | None:
    return None if valid is None or valid.all() else _buffer(np.packbits(valid, bitorder="little"))


def _buffer(values: Array) -> pa.Buffer:
    return pa.py_buffer(values)  # type: ignore[arg-type]  # the stubs do not know that arrays are buffers
