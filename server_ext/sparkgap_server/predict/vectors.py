"""Columns of `pyspark.ml.linalg` vectors for `tensors`: Arrow has them as structs, which are one tensor column here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkgap_server.predict.views import Array, buffer_view, list_rows

_FIELDS = {"type": pa.int8(), "size": pa.int32(), "indices": pa.int32(), "values": pa.float64()}
_DENSE = 1


def is_vector(kind: Any) -> bool:
    """Whether a type is that of `VectorUDT` in Arrow: a struct of exactly its fields."""
    if not pa.types.is_struct(kind) or [field.name for field in kind] != list(_FIELDS):
        return False
    kinds = [field.type for field in kind]
    lists = kinds[2:]
    return (
        kinds[:2] == [pa.int8(), pa.int32()]
        and all(pa.types.is_list(each) for each in lists)
        and [each.value_type for each in lists] == [pa.int32(), pa.float64()]
    )


def vector_lengths(column: Any) -> npt.NDArray[np.int64]:
    """Number of values that each vector stands for."""
    dense, size, _, values = _parts(column)
    return np.where(dense, np.diff(list_rows(values)[1]), size)


def vector_values(column: Any, width: int) -> Array:
    """(N * width,) float64, row after row, of vectors that all have `width` values: a view where all are dense, zeros filled in otherwise."""
    dense, _, indices, values = _parts(column)
    stored, bounds = list_rows(values)
    if dense.all():
        return buffer_view(stored)
    places, place_bounds = list_rows(indices)
    lengths = np.diff(bounds)
    row = np.repeat(np.arange(len(column)), lengths)
    place = np.arange(len(stored)) - np.repeat(bounds[:-1], lengths)  # right for dense rows
    place[~dense[row]] = buffer_view(places)[~np.repeat(dense, np.diff(place_bounds))]
    table = np.zeros((len(column), width))
    table[row, place] = buffer_view(stored)
    return table.reshape(-1)


def _parts(column: Any) -> tuple[npt.NDArray[np.bool_], Array, Any, Any]:
    kind, size, indices, values = column.flatten()
    return buffer_view(kind) == _DENSE, buffer_view(size), indices, values
