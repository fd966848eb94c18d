"""Cuts a stream of Arrow batches of any size into batches of exactly the model's size, across their borders, for the prediction worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

Columns = Sequence["pa.Array[Any]"]


class Rebatcher:
    """Holds the rows that do not fill a batch yet; slices are views, only a batch that lies across a border is copied."""

    def __init__(self, batch_size: int) -> None:
        self._size = batch_size
        self._waiting: deque[Columns] = deque()
        self._rows = 0

    def add(self, columns: Columns) -> None:
        """Take one input batch: equally long arrays, one a column."""
        if len(columns[0]):
            self._waiting.append(columns)
            self._rows += len(columns[0])

    def whole(self) -> Iterator[Columns]:
        """Every full batch that there is now."""
        while self._rows >= self._size:
            yield self._take(self._size)

    def rest(self) -> Iterator[Columns]:
        """The last, smaller batch, if rows are left."""
        if self._rows:
            yield self._take(self._rows)

    def _take(self, rows: int) -> Columns:
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
        self._rows -= rows
        if len(parts) == 1:
            return parts[0]
        return [pa.concat_arrays(list(pieces)) for pieces in zip(*parts, strict=True)]
