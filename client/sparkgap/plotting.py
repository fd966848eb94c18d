"""The picture of a run's metrics, for `Run.plot`: one panel a metric, one line a rank."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from sparkgap_protos import reporting

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ModuleNotFoundError(
        "plot() draws with matplotlib, which this client does not have: pip install 'sparkgap[plot]', or draw from metrics()",
        name="matplotlib",
    ) from error

if TYPE_CHECKING:
    import pandas as pd

_INK, _MUTED, _HAIRLINE = "#1f2933", "#64707d", "#d9dee4"
_COLORS = ("#2166ac", "#c0392b", "#2a9d5c", "#8e5bb5", "#d98200", "#0f8b8d", "#7f5539", "#5c6b78")
_WIDTH = 8.0
_LONG_LABELS = 4  # in one line with the title
_MOST_POINTS = 8000  # of a line; a panel is some 900 pixels wide
_PANEL_HEIGHT, _HEAD_HEIGHT = 2.3, 0.9


class Picture(Figure):
    """A figure that a notebook shows without pyplot, whose list of open figures would keep it."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Draw what `metrics.table` gives; ranks beyond the eighth share its colours, without a legend."""
    names = [name for name in table.columns if name not in reporting.COLUMNS]
    height = _HEAD_HEIGHT + _PANEL_HEIGHT * max(1, len(names))
    figure = Picture(figsize=(_WIDTH, height), dpi=120, facecolor="white")
    top = 1 - _HEAD_HEIGHT / height
    figure.text(0.08, 1 - 0.35 / height, title, size=14, weight="bold", color=_INK, va="center")
    if not names:
        figure.text(0.08, top, "No rank has reported a metric yet.", size=11, color=_MUTED, va="top")
        return figure
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.08, right=0.97, top=top, bottom=0.5 / height, hspace=0.45)
    ranks = sorted(table["rank"].unique())
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, table.dropna(subset=[name]), name, ranks)
    panels[-1].set_xlabel("step", size=10, color=_MUTED)
    if 1 < len(ranks) <= len(_COLORS):
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        if len(ranks) > _LONG_LABELS:
            unique = {
                label if at == 0 else label.removeprefix("rank "): line
                for at, (label, line) in enumerate(unique.items())
            }
        figure.legend(
            unique.values(), unique.keys(), loc="center right", bbox_to_anchor=(0.97, 1 - 0.35 / height), ncols=len(ranks),
            frameon=False, fontsize=10, labelcolor=_MUTED, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip
    return figure


def _outline(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line that looks the same: of each of many equal parts, the first, the smallest, the largest and the last value, in their order."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    borders = np.linspace(0, len(steps), _MOST_POINTS // 4 + 1).astype(int)
    parts = [
        (start, start + np.argmin(part), start + np.argmax(part), start + len(part) - 1)
        for start, part in zip(borders[:-1], np.split(values, borders[1:-1]), strict=True)
    ]
    chosen = np.unique(np.array(parts))
    return steps[chosen], values[chosen]


def _panel(axes: Axes, table: pd.DataFrame, name: str, ranks: list[int]) -> None:
    axes.set_title(name, size=11, weight="bold", color=_INK, loc="left")
    colors = {rank: _COLORS[index % len(_COLORS)] for index, rank in enumerate(ranks)}
    for rank, attempt in table[["rank", "attempt"]].drop_duplicates().itertuples(index=False):
        rows = table[(table["rank"] == rank) & (table["attempt"] == attempt)]
        ordered = rows.sort_values("step", kind="stable")
        marker = "o" if len(ordered) == 1 else None
        dense = len(ordered) > _MOST_POINTS  # noise would be drawn as a thick band, under which other ranks vanish
        axes.plot(
            *_outline(ordered["step"].to_numpy(), ordered[name].to_numpy()), color=colors[rank], linewidth=1.0 if dense else 1.5,
            marker=marker, markersize=5, label=f"rank {rank}", alpha=1.0 if len(ranks) <= (1 if dense else len(_COLORS)) else 0.6,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.grid(True, color=_HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, labelcolor=_MUTED, length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_HAIRLINE)
