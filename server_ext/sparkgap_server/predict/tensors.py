"""The model host calls this once a batch: Arrow columns become NumPy arguments of predict; `columns` takes the result.

The rules are those of `pyspark.ml.functions.predict_batch_udf`, which takes the way over pandas. Here nothing imports
pandas, and numbers without nulls are views of the Arrow buffers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pyspark.sql.pandas.types import is_geography, is_geometry, is_variant

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputLayout:
    """What the plan says about the argument columns of the UDF.

    Parameters
    ----------
    names
        One per column, for error texts.
    shapes
        `input_tensor_shapes` in its list form, without the batch dimension; one per model argument, None for a scalar.
    sparse_shapes
        `input_tensor_shapes` in its dict form, index of the model argument to shape.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape | None, ...] | None = None
    sparse_shapes: Mapping[int, Shape] | None = None

    def dense(self, num_arguments: int) -> tuple[Shape | None, ...] | None:
        """One shape a model argument, or None where the plan gives no shapes at all."""
        if self.sparse_shapes is None:
            return self.shapes or None
        shapes: list[Shape | None] = [None] * num_arguments
        for index, shape in self.sparse_shapes.items():
            if not -num_arguments <= index < num_arguments:
                raise ValueError(
                    f"input_tensor_shapes has a shape for input {index}, but the model has {num_arguments} inputs"
                )
            shapes[index] = shape
        return tuple(shapes)


def model_arguments(predict: Callable[..., object]) -> int:
    """Number of arrays that a predict function takes, counted as pyspark does: `*args` is one, a default counts."""
    return len(inspect.signature(predict).parameters)


def to_arguments(columns: Sequence[pa.Array[Any]], layout: InputLayout, num_arguments: int) -> list[Array]:
    """Turn the columns of one batch into the arguments of predict.

    Called once a batch, before predict. Free for numbers without nulls, which are views as writable as their Arrow
    buffers are; nulls, booleans and times cost one copy, all other types one Python object a value.

    Parameters
    ----------
    columns
        One a UDF argument, all N rows long; slices are fine. The fields of a struct count as columns.
    layout
        Names and shapes, from the plan.
    num_arguments
        What `model_arguments` said.

    Returns
    -------
    list of numpy.ndarray
        `num_arguments` arrays whose first dimension is N: (N,) for a scalar column, (N, *shape) for a tensor,
        (N, fields) for a struct of scalars that is the model's only argument.

    Raises
    ------
    ValueError
        The columns do not fit the model or the shapes, or a tensor row is null or has a wrong length.
    """
    inputs = [part for name, column in zip(layout.names, columns, strict=True) for part in _flattened(name, column)]
    shapes = layout.dense(num_arguments)
    tensors = [part.name for part in inputs if part.is_tensor]
    if tensors and shapes is None:
        raise ValueError(f"Tensor columns require input_tensor_shapes: {_quoted(tensors)} hold arrays")
    if num_arguments == 1:
        return [_only_argument(inputs, shapes, is_struct=len(columns) == 1)]
    if len(inputs) != num_arguments:
        raise ValueError(
            f"Model expected {num_arguments} inputs, but received {len(inputs)} columns: {_quoted(_names(inputs))}"
        )
    if shapes is None:
        return [part.scalars() for part in inputs]
    if len(shapes) != len(inputs):
        raise ValueError(
            f"input_tensor_shapes must match columns: {len(shapes)} shapes for {len(inputs)} columns, "
            f"{_quoted(_names(inputs))}"
        )
    return [part.argument(shape) for part, shape in zip(inputs, shapes, strict=True)]


@dataclass(frozen=True)
class _Input:
    name: str
    column: Any  # pyarrow.Array; the stubs lack what its subclasses add

    @property
    def is_tensor(self) -> bool:
        kind = self.column.type
        return pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)

    def argument(self, shape: Shape | None) -> Array:
        """The array for one of several model arguments."""
        if self.is_tensor:
            return self.tensor(shape) if shape else self.ragged()
        scalars = self.scalars()
        return self.reshaped(scalars, shape) if shape else scalars

    def scalars(self) -> Array:
        return _values(self.column)

    def reshaped(self, scalars: Array, shape: Shape) -> Array:
        if _row_size(shape) != 1:
            raise ValueError(f"{self._expected(shape)}, but the column is a scalar one")
        # pyspark stacks rows: objects lose their dtype there, so strings become numpy.str_.
        stacked = np.vstack(list(scalars)) if scalars.dtype == object and len(scalars) else scalars
        return stacked.reshape(len(scalars), *shape)

    def tensor(self, shape: Shape) -> Array:
        """(N, *shape) from one flat row-major list a row."""
        size, rows = _row_size(shape), len(self.column)
        if self.column.null_count:
            row = int(np.argmin(_valid(self.column)))
            raise ValueError(f"{self._expected(shape)}, but row {row} of {rows} in the batch is null")
        values, bounds = self._rows()
        lengths = np.diff(bounds)
        wrong = lengths != size
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{self._expected(shape)}, but row {row} of {rows} in the batch has {lengths[row]}"
                f" ({np.count_nonzero(wrong)} such rows)"
            )
        return self._elements(values).reshape(rows, *shape)

    def ragged(self) -> Array:
        """(N,) objects, an array a row and None for a null row: pyspark's form of a tensor column without a shape."""
        values, bounds = self._rows()
        elements, rows = self._elements(values), np.empty(len(self.column), dtype=object)
        for row, valid in enumerate(_valid(self.column)):
            rows[row] = elements[bounds[row] : bounds[row + 1]] if valid else None
        return rows

    def _rows(self) -> tuple[pa.Array[Any], npt.NDArray[np.int64]]:
        """Values of all rows end to end, and where each row begins and the last one ends."""
        column, rows = self.column, len(self.column)
        if isinstance(column, pa.FixedSizeListArray):
            width = column.type.list_size
            return column.values.slice(column.offset * width, rows * width), np.arange(rows + 1) * width
        bounds = _buffer_view(column.offsets).astype(np.int64) if rows else np.zeros(1, np.int64)
        return column.values.slice(bounds[0], bounds[-1] - bounds[0]), bounds - bounds[0]

    def _elements(self, values: pa.Array[Any]) -> Array:
        if pt.is_nested(values.type):
            raise ValueError(
                f"Column {self.name!r} is of type {self.column.type}: a tensor is one flat list of values a row, "
                "use `flatten` on nested arrays"
            )
        if pt.is_integer(values.type) and values.null_count:
            return _objects(
                values
            )  # a list of integers with a null is one of objects in pandas; a column of them is not
        return _values(values)

    def _expected(self, shape: Shape) -> str:
        return (
            f"Input data does not match expected shape. Column {self.name!r} has input_tensor_shape {list(shape)}, "
            f"which takes {_row_size(shape)} values a row"
        )


def _flattened(name: str, column: pa.Array[Any]) -> Iterator[_Input]:
    kind = column.type
    if not isinstance(column, pa.StructArray):
        yield _Input(name, column)
        return
    if is_variant(kind) or is_geometry(kind) or is_geography(kind):
        raise ValueError(f"Column {name!r} is a variant or a geometry, which has no NumPy form; cast it first")
    for field, part in zip(column.type, column.flatten(), strict=True):
        yield _Input(f"{name}.{field.name}", part)


def _only_argument(inputs: list[_Input], shapes: tuple[Shape | None, ...] | None, *, is_struct: bool) -> Array:
    first = inputs[0]
    has_tensors = any(part.is_tensor for part in inputs)
    if len(inputs) > 1 and (has_tensors or not is_struct):
        raise ValueError(
            "Multiple input columns found, but model expected a single input, use `array` to combine columns into "
            f"tensors. The columns are {_quoted(_names(inputs))}"
        )
    shape = shapes[0] if shapes else None
    if not has_tensors and len(inputs) == 1 and shape not in (None, (), (1,)):
        raise ValueError(f"Invalid input_tensor_shape for scalar column. Column {first.name!r}, shape {_text(shape)}")
    if not has_tensors and len(inputs) > 1 and shapes and shape != (len(inputs),):
        raise ValueError(
            f"Input data does not match expected shape. The struct has {len(inputs)} fields, "
            f"{_quoted(_names(inputs))}, and input_tensor_shape {_text(shape)}"
        )
    if shapes and len(shapes) > 1:
        raise ValueError(
            f"Multiple input_tensor_shapes found, but model expected one input: {len(shapes)} shapes for "
            f"{_quoted(_names(inputs))}"
        )
    if has_tensors:
        if shape is None:
            raise ValueError(f"Tensor columns require input_tensor_shapes: the shape of {first.name!r} is None")
        return first.tensor(shape)
    if len(inputs) > 1:
        return _table([part.scalars() for part in inputs])
    return first.scalars().reshape(-1, *(shape or ()))


def _table(columns: list[Array]) -> Array:
    """(N, columns), of the dtype that `pandas.DataFrame.to_numpy` finds."""
    kinds = {column.dtype.kind for column in columns}
    if len({column.dtype for column in columns}) == 1 or kinds <= set("iuf"):
        return np.column_stack(columns)
    table = np.empty((len(columns[0]), len(columns)), dtype=object)
    for index, column in enumerate(columns):
        # Nanoseconds as objects would be bare integers; Spark's own times are microseconds.
        table[:, index] = column.astype(f"{column.dtype.kind}8[us]") if column.dtype.kind in "mM" else column
    return table


def _values(column: pa.Array[Any]) -> Array:
    """One value a row, in the dtype and with the null (NaN, NaT or None) that pandas would show."""
    kind = column.type
    if pt.is_boolean(kind):
        return _objects(column) if column.null_count else _bits(column.buffers()[1], column)
    if pt.is_timestamp(kind) or pt.is_duration(kind):
        if pt.is_timestamp(kind) and kind.tz is not None:
            column = pc.local_timestamp(column)  # type: ignore[call-overload]  # the stubs want one without a time zone
        column = column.cast(pa.timestamp("ns") if pt.is_timestamp(kind) else pa.duration("ns"))
        times = _buffer_view(column).view("M8[ns]" if pt.is_timestamp(kind) else "m8[ns]")
        return np.where(_valid(column), times, times.dtype.type("NaT", "ns")) if column.null_count else times
    if pt.is_integer(kind) or pt.is_floating(kind):
        numbers = _buffer_view(column)
        if column.null_count:
            numbers = numbers.astype(np.float64 if pt.is_integer(kind) else numbers.dtype)
            numbers[~_valid(column)] = np.nan
        return numbers
    return _objects(column.cast(pa.time64("us")) if pt.is_time64(kind) else column)


def _objects(column: pa.Array[Any]) -> Array:
    if pt.is_string(column.type) or pt.is_large_string(column.type) or pt.is_binary(column.type):
        return column.to_numpy(zero_copy_only=False)
    objects = np.empty(len(column), dtype=object)
    objects[:] = column.to_pylist(maps_as_pydicts="lossy")
    return objects


def _buffer_view(column: pa.Array[Any]) -> Array:
    """The values of a column of fixed width, nulls included, without a copy.

    `pyarrow.Array.to_numpy` marks its views read-only whatever the buffer is, and imports pandas where it is installed.
    """
    kind, rows = column.type, len(column)
    dtype = np.dtype(np.int64 if pt.is_temporal(kind) else kind.to_pandas_dtype())
    if not rows:
        return np.empty(0, dtype)
    return _view(column.buffers()[1], dtype, rows, column.offset * dtype.itemsize)


def _view(buffer: pa.Buffer | None, dtype: npt.DTypeLike, count: int, offset: int) -> Array:
    view: Array = np.frombuffer(buffer, dtype, count, offset)  # type: ignore[call-overload]  # a Buffer is one by protocol
    return view


def _valid(column: pa.Array[Any]) -> npt.NDArray[np.bool_]:
    return _bits(column.buffers()[0], column) if column.null_count else np.ones(len(column), bool)


def _bits(bitmap: pa.Buffer | None, column: pa.Array[Any]) -> npt.NDArray[np.bool_]:
    if bitmap is None or not len(column):
        return np.zeros(len(column), bool)
    first, skip = divmod(column.offset, 8)
    packed = _view(bitmap, np.uint8, (skip + len(column) + 7) // 8, first)
    return np.unpackbits(packed.view(np.uint8), count=skip + len(column), bitorder="little")[skip:].view(bool)


def _row_size(shape: Shape) -> int:
    if any(dimension < 1 for dimension in shape):
        raise ValueError(f"input_tensor_shape {list(shape)} must have positive dimensions, without the batch dimension")
    return math.prod(shape)


def _names(inputs: list[_Input]) -> list[str]:
    return [part.name for part in inputs]


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _text(shape: Shape | None) -> str:
    return "None" if shape is None else str(list(shape))
