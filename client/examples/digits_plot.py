"""The picture that `digits.py` ends with: the loss, the hardest held-out digits, and where predictions went wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK, MUTED, HAIRLINE, PAPER, BLUE, RED = "#1f2933", "#64707d", "#d9dee4", "#f4f6f8", "#2166ac", "#c0392b"


def save_picture(path: str, training: dict[str, Any], table: pd.DataFrame) -> None:
    """Draw 1200 x 520 units at twice that many pixels; `table` has the columns pixels, label, digit, confidence."""
    figure = Figure(figsize=(12, 5.2), dpi=200, facecolor="white")
    right = (table.digit == table.label).mean()
    title = f"{right:.1%} of {len(table)} held-out digits read correctly"
    figure.text(0.05, 0.92, title, size=18, weight="bold", color=INK)
    draw_loss(figure.add_axes((0.05, 0.44, 0.5, 0.34)), training)
    draw_hardest(figure.add_axes((0.05, 0.045, 0.5, 0.22)), table)
    draw_confusion(figure.add_axes((0.64, 0.04, 0.32, 0.74)), table)
    figure.savefig(path)


def draw_loss(axes: Axes, training: dict[str, Any]) -> None:
    loss, epochs = np.array(training["loss"]), training["epochs"]
    steps = np.linspace(0, epochs, len(loss))
    means = loss.reshape(epochs, -1).mean(axis=1)
    heading(axes, "Training loss", f"{training['processes']} processes; each step, and the mean of each epoch")
    axes.plot(steps, loss, color=BLUE, alpha=0.35, linewidth=0.9)
    axes.plot(np.arange(epochs) + 0.5, means, color=BLUE, linewidth=2, marker="o", markersize=5)
    axes.set(xlim=(0, epochs), yscale="log", xlabel="epoch")
    axes.xaxis.label.set(size=11, color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.grid(True, color=HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.tick_params(labelsize=11, labelcolor=MUTED, length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(HAIRLINE)


def draw_hardest(axes: Axes, table: pd.DataFrame, count: int = 9) -> None:
    """Show the digits read wrongly, the surest mistake first, then the right answers that were least sure."""
    wrong = table[table.digit != table.label].sort_values("confidence", ascending=False)
    right = table[table.digit == table.label].sort_values("confidence")
    heading(axes, "Hardest held-out digits", "digit → answer where they differ; confidence")
    for place, row in enumerate(pd.concat([wrong, right]).head(count).to_dict("records")):
        cell = axes.inset_axes((place / count, 0.36, 0.84 / count, 0.64))
        cell.imshow(np.reshape(row["pixels"], (8, 8)), cmap="gray_r")
        cell.set(xticks=[], yticks=[], anchor="N")
        cell.spines[:].set_visible(False)
        mistake = row["digit"] != row["label"]
        answer = f"{row['label']} → {row['digit']}" if mistake else f"{row['digit']}"
        middle = (place + 0.42) / count
        axes.text(middle, 0.2, answer, ha="center", size=11, weight="bold", color=RED if mistake else INK)
        axes.text(middle, 0.0, f"{row['confidence']:.0%}", ha="center", size=10, color=MUTED)
    axes.set_axis_off()


def draw_confusion(axes: Axes, table: pd.DataFrame) -> None:
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (table.label, table.digit), 1)
    heading(axes, "Confusion", "rows: the digit, columns: the answer")
    for (label, digit), count in np.ndenumerate(counts):
        right = label == digit
        face = BLUE if right else RED if count else PAPER
        axes.add_patch(Rectangle((digit - 0.47, label - 0.47), 0.94, 0.94, color=face, linewidth=0))
        if count or right:
            axes.text(
                digit, label, str(count), ha="center", va="center_baseline", size=11, weight="bold", color="white"
            )
    axes.set(xticks=range(10), yticks=range(10), xlim=(-0.47, 9.47), ylim=(9.47, -0.47), aspect="equal", anchor="NW")
    axes.tick_params(labelsize=11, labelcolor=MUTED, length=0)
    axes.spines[:].set_visible(False)


def heading(axes: Axes, title: str, note: str) -> None:
    bold = axes.annotate(title, (0, 1), (0, 10), "axes fraction", "offset points", size=12, weight="bold", color=INK)
    axes.annotate(f"  {note}", (1, 0), xycoords=bold, va="bottom", size=11, color=MUTED)
