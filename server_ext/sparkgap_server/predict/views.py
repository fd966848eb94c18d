"""NumPy views of Arrow buffers, for everything that turns columns into arguments: `tensors`, `raw`, `vectors`, `dtypes` and `nulls`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]


def buffer_view(column: pa.Array[Any]) -> Array:
    """The values of a column of fixed width, nulls included, without a copy.

    `pyarrow.Array.to_numpy` marks its views read-only whatever the buffer is, and imports pandas where it is installed.
    """
    kind, rows = column.type, len(column)
    dtype = np.dtype(np.int64 if pt.is_temporal(kind) else kind.to_pandas_dtype())
    if not rows:
        return np.empty(0, dtype)
    return view(column.buffers()[1], dtype, rows, column.offset * dtype.itemsize)


def view(buffer: pa.Buffer | None, dtype: npt.DTypeLike, count: int, offset: int) -> Array:
    """`count` values from the byte `offset` on, writable where the buffer is."""
    values: Array = np.frombuffer(buffer, dtype, count, offset)  # type: ignore[call-overload]  # a Buffer is one by protocol
    return values


def valid(column: pa.Array[Any]) -> npt.NDArray[np.bool_]:
    """True where a row is not null."""
    return bits(column.buffers()[0], column) if column.null_count else np.ones(len(column), bool)


def bits(bitmap: pa.Buffer | None, column: pa.Array[Any]) -> npt.NDArray[np.bool_]:
    """One boolean a row of a bitmap that belongs to the column."""
    if bitmap is None or not len(column):
        return np.zeros(len(column), bool)
    first, skip = divmod(column.offset, 8)
    packed = view(bitmap, np.uint8, (skip + len(column) + 7) // 8, first)
    return np.unpackbits(packed.view(np.uint8), count=skip + len(column), bitorder="little")[skip:].view(bool)


def is_list(kind: pa.DataType) -> bool:
    """Whether rows are arrays, in any of Arrow's forms."""
    return pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether rows are bytes, with offsets of either width."""
    return pt.is_binary(kind) or pt.is_large_binary(kind)


def list_rows(column: Any) -> tuple[pa.Array[Any], npt.NDArray[np.int64]]:
    """Values of all rows of a list column end to end, and where each row begins and the last one ends."""
    rows = len(column)
    if isinstance(column, pa.FixedSizeListArray):
        width = column.type.list_size
        return column.values.slice(column.offset * width, rows * width), np.arange(rows + 1) * width
    bounds = buffer_view(column.offsets).astype(np.int64) if rows else np.zeros(1, np.int64)
    return column.values.slice(bounds[0], bounds[-1] - bounds[0]), bounds - bounds[0]
