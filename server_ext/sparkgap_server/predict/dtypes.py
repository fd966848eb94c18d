"""Columns of numbers in the dtype that the plan declares for them, for `tensors`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from sparkgap_server.predict.views import Array, bits, buffer_view, valid

Dtype = np.dtype[Any]


def converted(name: str, column: pa.Array[Any], dtype: Dtype, bounds: npt.NDArray[np.int64] | None = None) -> Array:
    """The numbers of a column as `dtype`: no copy where they have it, `astype` otherwise; null becomes NaN.

    Parameters
    ----------
    name
        Of the column, for error texts.
    column
        (N,) numbers or booleans.
    dtype
        As declared.
    bounds
        Where each row begins and the last one ends, when the numbers are the elements of arrays.

    Raises
    ------
    ValueError
        The column holds something else, or has a null, NaN or infinity and `dtype` has no such value.
    """
    kind = column.type
    if not (pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_floating(kind)):
        raise ValueError(
            f"Column {name!r} has values of type {kind}, and input_dtypes declares {dtype} for them: only numbers, booleans "
            "and binary tensors have a dtype; cast the column in the query first"
        )
    values = bits(column.buffers()[1], column) if pt.is_boolean(kind) else buffer_view(column)
    if dtype.kind == "f":
        numbers = values.astype(dtype, copy=bool(column.null_count))
        if column.null_count:
            numbers[~valid(column)] = np.nan
        return numbers
    if column.null_count:
        raise ValueError(
            f"Column {name!r} {_place(~valid(column), bounds, 'is null')}, and input_dtypes declares {dtype}, which has no null: "
            "declare a float for NaN, or leave such rows out with nulls='skip'"
        )
    if values.dtype.kind == "f" and dtype.kind in "iu":
        strange = ~np.isfinite(values)
        if strange.any():
            raise ValueError(
                f"Column {name!r} {_place(strange, bounds, 'is NaN or infinite')}, and input_dtypes declares {dtype}, which "
                "has no such value: declare a float"
            )
    return values.astype(dtype, copy=False)


def _place(strange: npt.NDArray[np.bool_], bounds: npt.NDArray[np.int64] | None, what: str) -> str:
    index = int(np.argmax(strange))
    if bounds is None:
        return f"{what} in row {index} of {len(strange)} in the batch"
    row = int(np.searchsorted(bounds, index, side="right")) - 1
    return f"has an element that {what} in row {row} of {len(bounds) - 1} in the batch"
