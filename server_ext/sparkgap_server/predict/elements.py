"""Values of columns for `tensors`, in the dtypes that pandas would show, whatever is inside of them: numbers, times, strings, arrays, structs, maps.

What has an inner structure costs one Python object a value: as in pyspark's predict_batch_udf an array is an ndarray, a struct and a map are dicts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pyspark.sql.pandas.types import is_geography, is_geometry, is_variant

from sparkgap_server.predict.vectors import is_vector
from sparkgap_server.predict.views import Array, bits, buffer_view, is_binary, is_list, list_rows, valid


def scalars(column: pa.Array[Any]) -> Array:
    """(N,), one value a row, in the dtype and with the null (NaN, NaT or None) that pandas would show."""
    kind = column.type
    if pt.is_boolean(kind):
        return _objects(column) if column.null_count else bits(column.buffers()[1], column)
    if pt.is_timestamp(kind) or pt.is_duration(kind):
        column = _local(column).cast(pa.timestamp("ns") if pt.is_timestamp(kind) else pa.duration("ns"))
        times = buffer_view(column).view("M8[ns]" if pt.is_timestamp(kind) else "m8[ns]")
        return np.where(valid(column), times, times.dtype.type("NaT", "ns")) if column.null_count else times
    if pt.is_integer(kind) or pt.is_floating(kind):
        numbers = buffer_view(column)
        if column.null_count:
            numbers = numbers.astype(np.float64 if pt.is_integer(kind) else numbers.dtype)
            numbers[~valid(column)] = np.nan
        return numbers
    if pt.is_string(kind) or pt.is_large_string(kind) or is_binary(kind):
        return column.to_numpy(zero_copy_only=False)
    return _objects(column)


def elements(values: pa.Array[Any]) -> Array:
    """(N,), the elements of arrays, of all rows end to end."""
    if is_list(values.type):
        return filled(rows_of_arrays(values))
    if pt.is_integer(values.type) and values.null_count:
        return _objects(values)  # a list of integers with a null is one of objects in pandas; a column of them is not
    return scalars(values)


def rows_of_arrays(column: pa.Array[Any]) -> list[Any]:
    """An ndarray a row of an array column, None for a null row.

    Where structs or maps are inside, pyspark calls `np.array`: arrays of equal lengths in an array make two dimensions of it, and an array without
    elements is of float64.
    """
    values, bounds = list_rows(column)
    if _holds_dicts(values.type):
        found = _python_values(values)
        return [
            _stacked(found[bounds[row] : bounds[row + 1]]) if each else None for row, each in enumerate(valid(column))
        ]
    flat = elements(values)
    return [flat[bounds[row] : bounds[row + 1]] if each else None for row, each in enumerate(valid(column))]


def _objects(column: pa.Array[Any]) -> Array:
    objects = np.empty(len(column), dtype=object)
    objects[:] = _python_values(column)
    return objects


def _python_values(column: Any) -> list[Any]:
    """One a row; times are those of the session's time zone and name none."""
    kind = column.type
    if is_list(kind):
        return rows_of_arrays(column)
    if pt.is_map(kind):
        return _dicts_of_maps(column)
    if pt.is_struct(kind):
        return _dicts_of_structs(column)
    found: list[Any] = (column.cast(pa.time64("us")) if pt.is_time64(kind) else _local(column)).to_pylist()
    return found


def _dicts_of_maps(column: Any) -> list[Any]:
    if not len(column):
        return []
    bounds = buffer_view(column.offsets).astype(np.int64)
    start, length = int(bounds[0]), int(bounds[-1] - bounds[0])
    keys, items = (_python_values(part.slice(start, length)) for part in (column.keys, column.items))
    pairs, bounds = list(zip(keys, items, strict=True)), bounds - start
    return [dict(pairs[bounds[row] : bounds[row + 1]]) if each else None for row, each in enumerate(valid(column))]


def _dicts_of_structs(column: Any) -> list[Any]:
    kind = column.type
    if is_vector(kind) or is_variant(kind) or is_geometry(kind) or is_geography(kind):
        raise ValueError(
            "a vector, a variant or a geometry inside of another value has no NumPy form: cast it in the query first"
        )
    fields = {field.name: _python_values(part) for field, part in zip(column.type, column.flatten(), strict=True)}
    return [
        {name: part[row] for name, part in fields.items()} if each else None for row, each in enumerate(valid(column))
    ]


def _holds_dicts(kind: Any) -> bool:
    return _holds_dicts(kind.value_type) if is_list(kind) else pt.is_nested(kind)


def _stacked(found: list[Any]) -> Array:
    try:
        return np.array(found)
    except ValueError:  # several lengths, which pyspark refuses
        return filled(found)


def filled(found: list[Any]) -> Array:
    """(N,) objects, of arrays or of None."""
    rows = np.empty(len(found), dtype=object)
    for index, each in enumerate(found):  # NumPy would take arrays apart
        rows[index] = each
    return rows


def _local(column: Any) -> Any:
    is_in_zone = pt.is_timestamp(column.type) and column.type.tz is not None
    return pc.local_timestamp(column) if is_in_zone else column
