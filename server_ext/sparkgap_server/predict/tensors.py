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
from pyspark.sql.pandas.types import is_geography, is_geometry, is_variant

from sparkgap_server.predict.dtypes import Dtype, converted
from sparkgap_server.predict.elements import elements, filled, rows_of_arrays, scalars
from sparkgap_server.predict.raw import binary_tensor
from sparkgap_server.predict.vectors import is_vector, vector_lengths, vector_values
from sparkgap_server.predict.views import Array, Shape, is_binary, is_list, list_rows, valid


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
    dtypes, sparse_dtypes
        `input_dtypes` in the same two forms.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape | None, ...] | None = None
    sparse_shapes: Mapping[int, Shape] | None = None
    dtypes: tuple[Dtype | None, ...] | None = None
    sparse_dtypes: Mapping[int, Dtype] | None = None

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

    def dense_dtypes(self, num_arguments: int) -> tuple[Dtype | None, ...]:
        """One dtype a model argument, None where none is declared."""
        dtypes = dict(self.sparse_dtypes or enumerate(self.dtypes or ()))
        if not self.sparse_dtypes and len(dtypes) not in (0, num_arguments):
            raise ValueError(
                f"input_dtypes must match the model's inputs: {len(dtypes)} dtypes for {num_arguments} inputs; None stands for "
                "an input that is left as it is"
            )
        if beyond := [index for index in dtypes if index >= num_arguments]:
            raise ValueError(
                f"input_dtypes has a dtype for input {beyond[0]}, but the model has {num_arguments} inputs"
            )
        return tuple(dtypes.get(index) for index in range(num_arguments))


def model_arguments(predict: Callable[..., object]) -> int:
    """Number of arrays that a predict function takes, counted as pyspark does: `*args` is one, a default counts, a bound `self` does not.

    Raises
    ------
    ValueError
        Python cannot tell, as of some functions in C.
    """
    try:
        return len(inspect.signature(predict).parameters)
    except ValueError as error:
        name = getattr(predict, "__name__", type(predict).__qualname__)
        raise ValueError(
            f"{error}, so its inputs cannot be counted: return a function of your own, lambda x: {name}(x)"
        ) from None


_HOW_COUNTED = (
    "Each parameter of predict is an input, one with a default and *args too, the self of a bound method is none; what is no input is bound in a "
    "function of its own: return lambda x: predict(x, scale=2.0)"
)


def to_arguments(columns: Sequence[pa.Array[Any]], layout: InputLayout, num_arguments: int) -> list[Array]:
    """Turn the columns of one batch into the arguments of predict.

    Called once a batch, before predict. Free for numbers without nulls, binary tensors and dense vectors, which are views
    as writable as their Arrow buffers are; nulls, booleans, times, another dtype and sparse vectors cost one copy, all other
    types one Python object a value.

    Parameters
    ----------
    columns
        One a UDF argument, all N rows long; slices are fine. The fields of a struct count as columns, a vector of
        `pyspark.ml.linalg` is one tensor column of float64.
    layout
        Names, shapes and dtypes, from the plan.
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
        The columns do not fit the model, the shapes or the dtypes, or a tensor row is null or has a wrong length.
    """
    inputs = [part for name, column in zip(layout.names, columns, strict=True) for part in _flattened(name, column)]
    shapes = layout.dense(num_arguments)
    dtypes = layout.dense_dtypes(num_arguments)
    tensors = [part.name for part in inputs if part.is_tensor]
    if tensors and shapes is None:
        raise ValueError(
            f"Tensor columns require input_tensor_shapes: {_quoted(tensors)} hold {_arrays_or_vectors(inputs)}"
        )
    if num_arguments == 1:
        return [_only_argument(inputs, shapes, dtypes[0], is_struct=len(columns) == 1)]
    if len(inputs) != num_arguments:
        raise ValueError(
            f"Model expected {num_arguments} inputs, but received {len(inputs)} columns: {_quoted(_names(inputs))}. {_HOW_COUNTED}"
        )
    if shapes is None:
        shapes = (None,) * num_arguments
    if len(shapes) != len(inputs):
        raise ValueError(
            f"input_tensor_shapes must match columns: {len(shapes)} shapes for {len(inputs)} columns, "
            f"{_quoted(_names(inputs))}"
        )
    return [part.argument(shape, dtype) for part, shape, dtype in zip(inputs, shapes, dtypes, strict=True)]


@dataclass(frozen=True)
class _Input:
    name: str
    column: Any  # pyarrow.Array; the stubs lack what its subclasses add

    @property
    def is_vector(self) -> bool:
        return is_vector(self.column.type)

    @property
    def is_tensor(self) -> bool:
        """Whether it needs a shape whatever the plan says; a binary column is a tensor where the plan declares it as one."""
        return is_list(self.column.type) or self.is_vector

    def argument(self, shape: Shape | None, dtype: Dtype | None) -> Array:
        """The array for one of several model arguments."""
        if self.is_tensor:
            return self.tensor(shape, dtype) if shape else self.ragged(dtype)
        if is_binary(self.column.type) and (shape or dtype):
            return binary_tensor(self.name, self.column, shape, dtype)
        scalars = self.scalars(dtype)
        return self.reshaped(scalars, shape) if shape else scalars

    def scalars(self, dtype: Dtype | None) -> Array:
        return scalars(self.column) if dtype is None else converted(self.name, self.column, dtype)

    def reshaped(self, scalars: Array, shape: Shape) -> Array:
        if _row_size(shape) != 1:
            raise ValueError(f"{self._expected(shape)}, but the column is a scalar one")
        # pyspark stacks rows: objects lose their dtype there, so strings become numpy.str_.
        stacked = np.vstack(list(scalars)) if scalars.dtype == object and len(scalars) else scalars
        return stacked.reshape(len(scalars), *shape)

    def tensor(self, shape: Shape, dtype: Dtype | None) -> Array:
        """(N, *shape) from one flat row-major list or one vector a row."""
        size, rows = _row_size(shape), len(self.column)
        if self.column.null_count:
            row = int(np.argmin(valid(self.column)))
            raise ValueError(f"{self._expected(shape)}, but row {row} of {rows} in the batch is null")
        if self.is_vector:
            self._check_lengths(vector_lengths(self.column), shape)
            vectors = vector_values(self.column, size)
            return (vectors if dtype is None else vectors.astype(dtype, copy=False)).reshape(rows, *shape)
        values, bounds = list_rows(self.column)
        self._check_lengths(np.diff(bounds), shape)
        found = elements(values) if dtype is None else converted(self.name, values, dtype, bounds)
        return found.reshape(rows, *shape)

    def ragged(self, dtype: Dtype | None) -> Array:
        """(N,) objects, an array a row and None for a null row: pyspark's form of a tensor column without a shape."""
        if self.is_vector:
            raise ValueError(f"Tensor columns require input_tensor_shapes: the shape of {self.name!r} is None")
        if dtype is None:
            return filled(rows_of_arrays(self.column))
        values, bounds = list_rows(self.column)
        numbers = converted(self.name, values, dtype, bounds)
        return filled(
            [numbers[bounds[row] : bounds[row + 1]] if each else None for row, each in enumerate(valid(self.column))]
        )

    def _check_lengths(self, lengths: npt.NDArray[np.int64], shape: Shape) -> None:
        wrong = lengths != _row_size(shape)
        if wrong.any():
            row = int(np.argmax(wrong))
            is_nested = is_list(self.column.type) and is_list(self.column.type.value_type)
            raise ValueError(
                f"{self._expected(shape)}, but row {row} of {len(lengths)} in the batch has {lengths[row]}"
                f" ({np.count_nonzero(wrong)} such rows)"
                f"{': a tensor is one flat list of values a row, use `flatten` on nested arrays' if is_nested else ''}"
            )

    def _expected(self, shape: Shape) -> str:
        return (
            f"Input data does not match expected shape. Column {self.name!r} has input_tensor_shape {list(shape)}, "
            f"which takes {_row_size(shape)} values a row"
        )


def _flattened(name: str, column: pa.Array[Any]) -> Iterator[_Input]:
    kind = column.type
    if not isinstance(column, pa.StructArray) or is_vector(kind):
        yield _Input(name, column)
        return
    if is_variant(kind) or is_geometry(kind) or is_geography(kind):
        raise ValueError(f"Column {name!r} is a variant or a geometry, which has no NumPy form; cast it first")
    for field, part in zip(column.type, column.flatten(), strict=True):
        yield _Input(f"{name}.{field.name}", part)


def _only_argument(
    inputs: list[_Input], shapes: tuple[Shape | None, ...] | None, dtype: Dtype | None, *, is_struct: bool
) -> Array:
    first = inputs[0]
    has_tensors = any(part.is_tensor for part in inputs)
    if len(inputs) > 1 and (has_tensors or not is_struct):
        raise ValueError(
            "Multiple input columns found, but model expected a single input, use `array` to combine columns into "
            f"tensors. The columns are {_quoted(_names(inputs))}. {_HOW_COUNTED}"
        )
    shape = shapes[0] if shapes else None
    is_raw = is_binary(first.column.type) and bool(shape or dtype)
    if not (has_tensors or is_raw) and len(inputs) == 1 and shape not in (None, (), (1,)):
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
        return first.tensor(shape, dtype)
    if len(inputs) > 1:
        return _table([part.scalars(dtype) for part in inputs])
    if is_raw:
        return first.argument(shape, dtype)
    return first.scalars(dtype).reshape(-1, *(shape or ()))


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


def _row_size(shape: Shape) -> int:
    if any(dimension < 1 for dimension in shape):
        raise ValueError(f"input_tensor_shape {list(shape)} must have positive dimensions, without the batch dimension")
    return math.prod(shape)


def _arrays_or_vectors(inputs: list[_Input]) -> str:
    return "vectors" if all(part.is_vector for part in inputs if part.is_tensor) else "arrays"


def _names(inputs: list[_Input]) -> list[str]:
    return [part.name for part in inputs]


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _text(shape: Shape | None) -> str:
    return "None" if shape is None else str(list(shape))
