"""What ranks have reported, as a table and as TensorBoard's event files; `Run` hands the events over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from sparkgap_protos import reporting
from sparkgap_protos.v1 import run_pb2

from sparkgap import tensorboard

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def table(events: Iterable[run_pb2.RunEvent]) -> pd.DataFrame:
    """One row a report, those of a rank in their order: the columns of `reporting.COLUMNS`, then one a metric, by name."""
    import numpy as np
    import pandas as pd

    found = [event for event in events if event.HasField("metrics")]
    starts = np.cumsum([0, *(1 + len(event.metrics.earlier.steps) for event in found)])
    ranks, attempts, steps, totals, times = (np.zeros(starts[-1], "int64") for _ in reporting.COLUMNS)
    figures: dict[str, np.ndarray] = {}

    def figure(name: str) -> np.ndarray:
        if name not in figures:
            figures[name] = np.full(starts[-1], math.nan)
        return figures[name]

    for event, start, end in zip(found, starts[:-1], starts[1:], strict=True):
        report, last = event.metrics, end - 1
        ranks[start:end], attempts[start:end], totals[start:end] = event.rank, event.attempt, report.total
        steps[last], times[last] = report.step, event.time
        for name, value in report.values.items():
            figure(name)[last] = value
        if last > start:
            earlier = report.earlier
            np.cumsum(earlier.steps, out=steps[start:last])
            times[start:last] = event.time + np.cumsum(earlier.times)
            if earlier.totals:
                totals[start:last] = earlier.totals
            for column in earlier.metrics:
                figure(column.name)[start:last][np.array(column.reports) if column.reports else slice(None)] = (
                    column.values
                )
    goals = pd.array(totals, dtype="Int64")
    goals[totals == 0] = pd.NA
    columns = {"rank": ranks, "attempt": attempts, "step": steps, "total": goals}
    columns["time"] = pd.to_datetime(times, unit="us", utc=True)
    columns.update((name, figures[name]) for name in sorted(figures) if name not in reporting.COLUMNS)
    # The server puts old reports together while they are read here, so that some of them may have come twice.
    frame = pd.DataFrame(columns).drop_duplicates(ignore_index=True)
    frame.attrs["dropped"] = sum(event.metrics.dropped for event in found)
    frame.attrs["thinned"] = sum(event.metrics.thinned for event in found)
    return frame


def export(events: Iterable[run_pb2.RunEvent], folder: Path) -> list[Path]:
    """Write one event file for each rank and attempt, in a folder of its own, which TensorBoard shows as one line of each chart."""
    found: dict[tuple[int, int], list[Report]] = {}
    for event in events:
        if event.HasField("metrics"):
            found.setdefault((event.rank, event.attempt), []).extend(reports_of(event))
    files = []
    for (rank, attempt), reports in sorted(found.items()):
        place = folder / (f"rank-{rank}" if attempt == 0 else f"rank-{rank}-attempt-{attempt}")
        place.mkdir(parents=True, exist_ok=True)
        # Those that have come twice, as in `table`, once.
        once = {(when, step, *sorted(values.items())): (when / 1e6, step, values) for when, step, values in reports}
        began = reports[0][0]
        # The name tells nothing but this; the same for each export of a run, so that a later one replaces it.
        file = place / f"events.out.tfevents.{began // 1_000_000}.sparkgap"
        with file.open("wb") as out:
            tensorboard.write(out, began / 1e6, once.values())
        files.append(file)
    return files


#: Microseconds since 1970, step, and values by name.
Report = tuple[int, int, dict[str, float]]


def reports_of(event: run_pb2.RunEvent) -> list[Report]:
    """All reports of one event, in their order."""
    earlier = event.metrics.earlier
    values: list[dict[str, float]] = [{} for _ in earlier.steps]
    for column in earlier.metrics:
        for position, value in zip(column.reports or range(len(values)), column.values, strict=True):
            values[position][column.name] = value
    times = (event.time + passed for passed in accumulate(earlier.times))
    steps = (_signed(step) for step in accumulate(earlier.steps))
    return [*zip(times, steps, values, strict=True), (event.time, event.metrics.step, dict(event.metrics.values))]


def _signed(number: int) -> int:
    """As 64 bits hold it."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
