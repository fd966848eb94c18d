"""The rows that a task sends at once, on their way through the model in batches of exactly its size; the host makes one Chunk of each message.

A chunk is one batch where the model takes its time, and many where batches are small: what can be done for all of them together is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sparkgap_server.predict.columns import empty_column, to_column
from sparkgap_server.predict.nulls import Sifted, has_nulls, sift
from sparkgap_server.predict.task import Task
from sparkgap_server.predict.tensors import to_arguments

Columns = Sequence["pa.Array[Any]"]
Batch = tuple[Sifted, list[Any]]
"""The rows that the model sees, and its arguments."""


class Chunk:
    """Rows on their way through the model.

    Made while another chunk is predicted, which for one batch does all of the work on its arguments.

    Parameters
    ----------
    task
        What the task asks for.
    inputs
        Number of arguments of the predict function.
    columns
        The argument columns, all `rows` long.
    rows
        Any number of batches; the last one may have fewer rows.
    """

    def __init__(self, task: Task, inputs: int, columns: Columns, rows: int) -> None:
        if len(columns) != len(task.layout.names):
            raise ValueError(
                f"the plan names {len(task.layout.names)} arguments, and the batch has {len(columns)} columns"
            )
        self._task = task
        self._inputs = inputs
        self._one = rows <= task.batch_size
        self._batches: Iterable[Batch] = [self._batch(columns, rows)] if self._one else self._cut(columns, rows)

    def predict(self, predict: Callable[..., object]) -> tuple[pa.Array[Any], float]:
        """The predictions, and the seconds inside `predict`. Copy them before it runs again, as it may return the same memory every time."""
        collected = _Collected(self._task, keep_views=self._one)
        seconds = 0.0
        for sifted, arguments in self._batches:
            predictions: object = None
            if sifted.rows:
                began = time.perf_counter()
                predictions = predict(*arguments)
                seconds += time.perf_counter() - began
            collected.add(predictions, sifted)
        return collected.column(), seconds

    def _batch(self, columns: Columns, rows: int) -> Batch:
        layout = self._task.layout
        sifted = sift(columns, layout.names, rows, self._task.nulls)
        return sifted, to_arguments(sifted.columns, layout, self._inputs) if sifted.rows else []

    def _cut(self, columns: Columns, rows: int) -> Iterable[Batch]:
        """Without nulls no batch differs from its chunk in dtype, so that slices of the chunk's arguments are the batches'."""
        if not any(has_nulls(column) for column in columns):
            try:
                whole = to_arguments(columns, self._task.layout, self._inputs)
            except ValueError:
                pass  # the batch that is to blame says so itself
            else:
                return self._slices(whole, rows)
        return self._copies(columns, rows)

    def _slices(self, arguments: list[Any], rows: int) -> Iterator[Batch]:
        for start, count in self._starts(rows):
            yield Sifted((), count), [argument[start : start + count] for argument in arguments]

    def _copies(self, columns: Columns, rows: int) -> Iterator[Batch]:
        for start, count in self._starts(rows):
            yield self._batch([column.slice(start, count) for column in columns], count)

    def _starts(self, rows: int) -> Iterator[tuple[int, int]]:
        size = self._task.batch_size
        return ((start, min(size, rows - start)) for start in range(0, rows, size))


class _Collected:
    """Predictions of the batches of a chunk; arrays of numbers of one kind become a column together."""

    def __init__(self, task: Task, *, keep_views: bool) -> None:
        self._task = task
        self._keep_views = keep_views
        self._alike: list[Any] = []
        self._kind: object = None
        self._columns: list[pa.Array[Any]] = []

    def add(self, predictions: object, sifted: Sifted) -> None:
        if not sifted.rows:
            self._finish()
            self._columns.append(sifted.scattered(empty_column(self._task.return_type)))
            return
        if self._keep_views:
            self._columns.append(sifted.scattered(self._convert(predictions, sifted.rows)))
            return
        own = _copy(predictions)
        kind = _kind(own, sifted.rows) if sifted.places is None else None
        if kind is None or kind != self._kind:
            self._finish()
        self._kind = kind
        if kind is None:
            self._columns.append(sifted.scattered(self._convert(own, sifted.rows)))
        else:
            self._alike.append(own)

    def column(self) -> pa.Array[Any]:
        self._finish()
        return self._columns[0] if len(self._columns) == 1 else pa.concat_arrays(self._columns)

    def _finish(self) -> None:
        alike, self._alike = self._alike, []
        if not alike:
            return
        try:
            joined = _join(alike)
            self._columns.append(self._convert(joined, _length(joined)))
        except (ValueError, TypeError):
            self._columns += [self._convert(each, _length(each)) for each in alike]  # the batch to blame says so itself

    def _convert(self, predictions: object, rows: int) -> pa.Array[Any]:
        return to_column(predictions, rows, self._task.return_type, self._task.conversion)


def _is_numbers(values: object) -> bool:
    return type(values) is np.ndarray and values.dtype.kind in "biuf" and values.ndim > 0


def _copy(predictions: object) -> object:
    if isinstance(predictions, np.ndarray):
        return predictions.copy()
    if isinstance(predictions, dict):
        return {name: _copy(values) for name, values in predictions.items()}
    return predictions


def _kind(predictions: object, rows: int) -> object:
    """Equal for predictions that can be joined, None for those that cannot."""
    if _is_numbers(predictions):
        assert isinstance(predictions, np.ndarray)
        return (predictions.dtype, predictions.shape[1:]) if len(predictions) == rows else None
    if isinstance(predictions, dict) and predictions:
        kinds = {name: _kind(values, rows) for name, values in predictions.items() if _is_numbers(values)}
        return kinds if len(kinds) == len(predictions) and None not in kinds.values() else None
    return None


def _join(alike: list[Any]) -> Any:
    if isinstance(alike[0], dict):
        return {name: np.concatenate([each[name] for each in alike]) for name in alike[0]}
    return np.concatenate(alike)


def _length(predictions: Any) -> int:
    return len(next(iter(predictions.values())) if isinstance(predictions, dict) else predictions)
