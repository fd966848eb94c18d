"""What the plan wants done with nulls: the model host sifts each batch here before `tensors` sees it, and scatters the predictions afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap_server.predict.vectors import is_vector
from sparkgap_server.predict.views import is_list, list_rows, valid

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sifted:
    """The rows of a batch that the model sees.

    Parameters
    ----------
    columns
        The arguments, `rows` long.
    rows
        Their number, 0 where every row of the batch is left out.
    places
        For each row of the batch its row in `columns`, or null where it is left out; None where they are the same.
    """

    columns: Sequence[pa.Array[Any]]
    rows: int
    places: pa.Array[Any] | None = None

    def scattered(self, predictions: pa.Array[Any]) -> pa.Array[Any]:
        """The predictions in the rows of the batch, null for rows that were left out."""
        return predictions if self.places is None else predictions.take(self.places)


def sift(columns: Sequence[pa.Array[Any]], names: Sequence[str], rows: int, nulls: int) -> Sifted:
    """Apply a plan's `nulls` to one batch; costs a look at the null counts, and a copy of the rows that stay where some are left out.

    A null is that of an argument, of a struct's field or of an array's element; NaN is none.

    Raises
    ------
    ValueError
        `nulls` is ERROR and there is one.
    """
    if nulls not in (pb.PredictPlan.NULLS_ERROR, pb.PredictPlan.NULLS_SKIP):
        return Sifted(columns, rows)
    found = [each for name, column in zip(names, columns, strict=True) for each in _nulls(name, column)]
    if not found:
        return Sifted(columns, rows)
    if nulls == pb.PredictPlan.NULLS_ERROR:
        what, mask = min(found, key=lambda each: int(np.argmax(each[1])))
        raise ValueError(
            f"{what} in row {int(np.argmax(mask))} of {rows} in the batch ({np.count_nonzero(mask)} such rows), and "
            "nulls='error' refuses nulls: filter or fill them in the query, or leave such rows out with nulls='skip'"
        )
    kept = ~np.logical_or.reduce([mask for _, mask in found])
    chosen: Any = pa.Array.from_buffers(pa.bool_(), rows, [None, _packed(kept)])
    places = np.cumsum(kept, dtype=np.int64) - 1
    buffer = pa.py_buffer(places)  # type: ignore[arg-type]  # the stubs do not know that arrays are buffers
    return Sifted(
        [column.filter(chosen) for column in columns],
        int(np.count_nonzero(kept)),
        pa.Array.from_buffers(pa.int64(), rows, [_packed(kept), buffer]),
    )


def has_nulls(column: pa.Array[Any]) -> bool:
    """Whether a column has a null as `sift` means it; a look at the null counts where it has none."""
    return next(_nulls("", column), None) is not None


def _nulls(name: str, column: Any) -> Iterator[tuple[str, Mask]]:
    """For each part of a column that has nulls: what is null, and in which rows."""
    if column.null_count:
        yield f"Column {name!r} is null", ~valid(column)
    if pt.is_struct(column.type) and not is_vector(column.type):
        for field, part in zip(column.type, column.flatten(), strict=True):
            yield from _nulls(f"{name}.{field.name}", part)
    elif is_list(column.type):
        values, bounds = list_rows(column)
        masks = [mask for _, mask in _nulls(name, values)]
        if masks:
            before = np.concatenate([[0], np.cumsum(np.logical_or.reduce(masks))])
            in_rows = (before[bounds[1:]] > before[bounds[:-1]]) & valid(column)
            if in_rows.any():
                yield f"Column {name!r} has a null element", in_rows


def _packed(mask: Mask) -> pa.Buffer:
    return pa.py_buffer(np.packbits(mask, bitorder="little"))  # type: ignore[arg-type]  # as above
