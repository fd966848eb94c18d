"""How the time of a prediction grows with rows, columns and batch size, against pyspark's; `inference.py --growth` calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prediction_models import make_total
from prediction_tables import PARTS, write
from ways import PYSPARK, SPARKGAP, Query, Sessions, medians, predict, predict_by_pyspark, time_in_turn

INK, MUTED, HAIRLINE, BLUE, RED = "#1f2933", "#64707d", "#d9dee4", "#2166ac", "#c0392b"

#: What grows, its values, and what stands still meanwhile.
SWEEPS = {
    "rows": ([10_000, 30_000, 100_000, 300_000, 1_000_000], {"columns": 4, "batch size": 1024}),
    "columns": ([1, 2, 4, 8], {"rows": 300_000, "batch size": 1024}),
    "batch size": ([1, 10, 100, 1000, 10_000], {"rows": 30_000, "columns": 4}),
}

WARM_UP = 15
"""Queries of either way before anything counts: a young JVM is slow, and the first sweep would pay for it."""

COLORS = {SPARKGAP: BLUE, PYSPARK: RED}

Points = dict[str, dict[int, dict[str, float]]]


def growth(spark: Sessions, folder: Path, rounds: int, picture: Path) -> Points:
    """Time every point of each sweep, print a table and draw it. Returns medians in seconds, by sweep, value and way."""
    point(spark, folder, WARM_UP, {"rows": 10_000, "columns": 8, "batch size": 100})
    points: Points = {}
    for swept, (values, still) in SWEEPS.items():
        points[swept] = {}
        print(f"\n{swept:>12}{'sparkgap':>12}{'pyspark':>12}{'ratio':>8}    " + caption(swept))
        for value in values:
            found = point(spark, folder, rounds, {**still, swept: value})
            points[swept][value] = found
            print(
                f"{value:>12}{found[SPARKGAP]:>10.3f} s{found[PYSPARK]:>10.3f} s{found[PYSPARK] / found[SPARKGAP]:>8.1f}",
                flush=True,
            )
    draw(points, picture)
    return points


def point(spark: Sessions, folder: Path, rounds: int, size: dict[str, int]) -> dict[str, float]:
    table = folder / f"{size['rows']}-rows"
    if not table.exists():
        generator = np.random.default_rng(0)
        for part in range(PARTS):
            write(table, part, {f"c{index}": generator.random(size["rows"] // PARTS) for index in range(8)})
    columns = [f"c{index}" for index in range(size["columns"])]
    query = Query(str(table), columns, make_total(size["columns"]), "double", size["batch size"])
    ways = {SPARKGAP: predict(spark.direct, query), PYSPARK: predict_by_pyspark(spark.direct, query)}
    return medians(time_in_turn(", ".join(f"{value} {name}" for name, value in size.items()), ways, rounds))


def draw(points: Points, picture: Path) -> None:
    """One panel a sweep, all of one logarithmic scale."""
    figure = Figure(figsize=(12, 4.4), dpi=150, facecolor="white")
    figure.text(0.045, 0.92, "Seconds of one prediction query as it grows", size=15, weight="bold", color=INK)
    for (way, color), place in zip(COLORS.items(), (0.88, 0.965), strict=True):
        figure.text(place, 0.92, way, size=13, weight="bold", color=color, ha="right")
    seconds = [time for found in points.values() for ways in found.values() for time in ways.values()]
    for place, (swept, found) in enumerate(points.items()):
        axes = figure.add_axes((0.045 + place * 0.325, 0.12, 0.27, 0.6))
        draw_sweep(axes, swept, found)
        axes.set_ylim(min(seconds) / 1.5, max(seconds) * 1.5)
        axes.set_yticks([tick for tick in (0.1, 0.3, 1, 3, 10, 30) if min(seconds) / 1.5 < tick < max(seconds) * 1.5])
    figure.savefig(picture)


def draw_sweep(axes: Axes, swept: str, found: dict[int, dict[str, float]]) -> None:
    axes.text(0, 1.14, swept, size=12, weight="bold", color=INK, transform=axes.transAxes)
    axes.text(0, 1.05, caption(swept), size=10, color=MUTED, transform=axes.transAxes)
    values = list(found)
    for way, color in COLORS.items():
        axes.plot(values, [found[value][way] for value in values], color=color, linewidth=2, marker="o", markersize=5)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.yaxis.grid(True, color=HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, labelcolor=MUTED, length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(HAIRLINE)


def caption(swept: str) -> str:
    """What stands still."""
    still = SWEEPS[swept][1]
    words = {"rows": "{:,} rows", "columns": "{} columns of doubles", "batch size": "batches of {:,} rows"}
    return ", ".join(words[name].format(value) for name, value in still.items())
