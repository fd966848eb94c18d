"""Cuts a stream of Arrow batches of any size into chunks of whole model batches, across their borders, for the prediction worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

Columns = Sequence["pa.Array[Any]"]


class Rebatcher:
    """Holds the rows that are not taken yet; slices are views, only a chunk that lies across a border is copied."""

    def __init__(self) -> None:
        self._waiting: deque[Columns] = deque()
        self.rows = 0

    def add(self, columns: Columns) -> None:
        """Take in one input batch: equally long arrays, one a column."""
        if len(columns[0]):
            self._waiting.append(columns)
            self.rows += len(columns[0])

    def take(self, rows: int) -> Columns:
        """The next `rows` rows; so many there have to be."""
        parts: list[Columns] = []
        missing = rows
        while missing:
            columns = self._waiting.popleft()
            length = len(columns[0])
            if length > missing:
                self._waiting.appendleft([column.slice(missing) for column in columns])
                columns = [column.slice(0, missing) for column in columns]
                length = missing
            parts.append(columns)
            missing -= length
        self.rows -= rows
        if len(parts) == 1:
            return parts[0]
        return [pa.concat_arrays(list(pieces)) for pieces in zip(*parts, strict=True)]


class Pace:
    """How many rows go to the model host at once: one batch, or several where they are so small and fast that the way there would cost more than the
    model. The tasks of the JVM follow the same figures, in PredictExec.scala."""

    FAST_SECONDS = 0.001
    SLOW_SECONDS = 0.01
    MAX_ROWS = 4096
    MAX_BYTES = 4 << 20

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._batches = 1

    def rows(self, waiting: int) -> int:
        """Of the next chunk, out of so many rows that wait; 0 where they make no whole batch."""
        return min(self._batches, waiting // self._batch_size) * self._batch_size

    def took(self, seconds: float, size: int) -> None:
        """Learn from a chunk: the seconds that the model took, and its bytes."""
        rows = self._batches * self._batch_size
        if seconds > self.SLOW_SECONDS and self._batches > 1:
            self._batches //= 2
        elif seconds < self.FAST_SECONDS and 2 * rows <= self.MAX_ROWS and 2 * size <= self.MAX_BYTES:
            self._batches *= 2
