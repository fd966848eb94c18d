"""Binary tensor columns for `tensors`: each row holds the bytes of one tensor, which NumPy reads where they lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from sparkgap_server.predict.views import Array, Shape, valid, view


def binary_tensor(
    name: str, column: pa.Array[Any], shape: Shape | None, dtype: np.dtype[Any] | None
) -> npt.NDArray[Any]:
    """(N, *shape) of `dtype` from a binary column whose rows are row-major and little-endian.

    A view of the Arrow buffer; booleans other than 0 and 1 and rows that do not begin at a multiple of the value's size cost a copy.

    Raises
    ------
    ValueError
        Only one of shape and dtype is declared, or a row is null or has another number of bytes.
    """
    if not shape or dtype is None:
        missing = "input_dtypes" if dtype is None else "input_tensor_shapes"
        raise ValueError(
            f"Column {name!r} is binary and has {'no dtype' if dtype is None else 'no shape'}: declare {missing} for this "
            "input as well, as a binary tensor needs the shape and the dtype of a row's bytes"
        )
    size, rows = math.prod(shape) * dtype.itemsize, len(column)
    expected = (
        f"Input data does not match expected shape. Column {name!r} has input_tensor_shape {list(shape)} and the dtype {dtype}, "
        f"which takes {size} bytes a row"
    )
    if column.null_count:
        row = int(np.argmin(valid(column)))
        raise ValueError(f"{expected}, but row {row} of {rows} in the batch is null")
    bounds = _bounds(column)
    wrong = np.diff(bounds) != size
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{expected}, but row {row} of {rows} in the batch has {bounds[row + 1] - bounds[row]}"
            f" ({np.count_nonzero(wrong)} such rows)"
        )
    return _read(column, int(bounds[0]), dtype, rows * math.prod(shape)).reshape(rows, *shape)


def _bounds(column: pa.Array[Any]) -> npt.NDArray[np.int64]:
    if not len(column):
        return np.zeros(1, np.int64)
    width = np.dtype(np.int64 if pt.is_large_binary(column.type) else np.int32)
    return view(column.buffers()[1], width, len(column) + 1, column.offset * width.itemsize).astype(np.int64)


def _read(column: pa.Array[Any], start: int, dtype: np.dtype[Any], count: int) -> Array:
    if not count:
        return np.empty(0, dtype)
    if dtype.kind == "b":
        flags = view(column.buffers()[2], np.uint8, count, start)
        return flags.view(bool) if flags.max() <= 1 else flags != 0
    values = view(column.buffers()[2], dtype.newbyteorder("<"), count, start)
    return values if values.flags.aligned else values.copy()
