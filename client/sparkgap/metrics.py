"""What ranks have reported, as a table and as TensorBoard's event files; `Run` hands the events over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sparkgap_protos import reporting
from sparkgap_protos.v1 import run_pb2

from sparkgap import tensorboard

if TYPE_CHECKING:
    import pandas as pd


def table(events: Iterable[run_pb2.RunEvent]) -> pd.DataFrame:
    """One row a report, in the order of the server's log: the columns of `reporting.COLUMNS`, then one a metric, by name."""
    import numpy as np
    import pandas as pd

    reports = [event for event in events if event.HasField("metrics")]
    columns = {
        "rank": np.array([event.rank for event in reports], "int64"),
        "attempt": np.array([event.attempt for event in reports], "int64"),
        "step": np.array([event.metrics.step for event in reports], "int64"),
        "total": pd.array([event.metrics.total or None for event in reports], dtype="Int64"),
        "time": pd.to_datetime(np.array([event.time for event in reports], "int64"), unit="us", utc=True),
    }
    names = {name for event in reports for name in event.metrics.values}.difference(reporting.COLUMNS)
    for name in sorted(names):
        columns[name] = np.array([event.metrics.values.get(name, math.nan) for event in reports], "float64")
    frame = pd.DataFrame(columns)
    frame.attrs["dropped"] = sum(event.metrics.dropped for event in reports)
    return frame


def export(events: Iterable[run_pb2.RunEvent], folder: Path) -> list[Path]:
    """Write one event file for each rank and attempt, in a folder of its own, which TensorBoard shows as one line of each chart."""
    found: dict[tuple[int, int], list[run_pb2.RunEvent]] = {}
    for event in events:
        if event.HasField("metrics"):
            found.setdefault((event.rank, event.attempt), []).append(event)
    files = []
    for (rank, attempt), reports in sorted(found.items()):
        place = folder / (f"rank-{rank}" if attempt == 0 else f"rank-{rank}-attempt-{attempt}")
        place.mkdir(parents=True, exist_ok=True)
        # The name tells nothing but this; the same for each export of a run, so that a later one replaces it.
        file = place / f"events.out.tfevents.{reports[0].time // 1_000_000}.sparkgap"
        scalars = ((event.time / 1e6, event.metrics.step, dict(event.metrics.values)) for event in reports)
        with file.open("wb") as out:
            tensorboard.write(out, reports[0].time / 1e6, scalars)
        files.append(file)
    return files
