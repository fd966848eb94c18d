"""What it costs a rank to report figures and to print lines, and how many of the lines its client sees; two sections of launch.py."""

from __future__ import annotations

import io
import re
import statistics
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import launch_ranks
from launch_ways import MOST_ROUNDS, deadline, server, session
from pyspark.sql import SparkSession
from sparkgap import TorchDistributor

CALLS = 100_000
LINES = 200_000
LOGS_SECONDS = 120

Figures = dict[str, list[dict[str, float]]]


def report(rounds: int) -> Figures:
    """Microseconds a call of `sparkgap.training.report`, next to those of a function that does nothing."""
    found = []
    with server() as started, session(started.url) as spark:
        for _ in range(min(rounds, MOST_ROUNDS)):
            with deadline(LOGS_SECONDS, f"a rank that reports {4 * CALLS} times"):
                found.append(
                    TorchDistributor(1, use_gpu=False, spark=spark, name="reports").run(
                        launch_ranks.report_loops, CALLS
                    )
                )
    print(f"\nMicroseconds a call, {CALLS:,} calls in a loop, median of {len(found)} rounds\n")
    for name, micros in medians(found).items():
        print(f"{name:<26}{micros:>10.2f} µs")
    return {"report": found}


class Watched(io.TextIOBase):
    """Stands for the client's terminal: counts the ranks' lines, and what the client says about those that are missing."""

    def __init__(self) -> None:
        self.shown = 0
        self.dropped = 0
        self.began: float | None = None
        self.ended = 0.0

    def write(self, text: str) -> int:
        self.ended = time.perf_counter()
        self.began = self.began or self.ended
        self.shown += text.count(launch_ranks.LINE + "\n")
        self.dropped += sum(map(int, re.findall(r"… (\d+) lines (?:were dropped|came faster)", text)))
        return len(text)


def logs(rounds: int) -> Figures:
    """How fast 1 and 2 ranks print, next to the same loop into nowhere and into `cat`, and that each line is shown or said to be dropped."""
    found: Figures = {}
    with server() as started, session(started.url) as spark:
        for ranks in (1, 2):
            found[f"{ranks} ranks"] = [
                printing(spark, ranks, number) for number in range(1, min(rounds, MOST_ROUNDS) + 1)
            ]
    print(f"\nSeconds of a loop that prints {LINES:,} lines of 80 bytes in each rank, and what the client sees\n")
    columns = ("/dev/null", "cat", "rank", "lines/s", "client's lines/s", "dropped")
    print(f"{'':<10}" + "".join(f"{name:>18}" for name in columns))
    for name, figures in found.items():
        middle = medians(figures)
        print(
            f"{name:<10}"
            + "".join(f"{middle[column]:>18,.{3 if index < 3 else 0}f}" for index, column in enumerate(columns))
        )
    return found


def printing(spark: SparkSession, ranks: int, number: int) -> dict[str, float]:
    terminal = Watched()
    with (
        deadline(LOGS_SECONDS, f"{ranks} ranks that print {LINES} lines"),
        redirect_stdout(terminal),
        redirect_stderr(terminal),
    ):
        loops = TorchDistributor(ranks, use_gpu=False, spark=spark, name="lines", results="all").run(
            launch_ranks.print_loops, LINES
        )
    printed = ranks * LINES
    assert terminal.shown + terminal.dropped == printed, (
        f"{printed} lines were printed, {terminal.shown} shown and {terminal.dropped} said to be dropped"
    )
    print(f"logs: round {number} with {ranks} ranks", file=sys.stderr)
    slowest = {name: max(loop[name] for loop in loops) for name in loops[0]}
    return {
        **slowest,
        "lines/s": printed / slowest["rank"],
        "client's lines/s": terminal.shown / (terminal.ended - (terminal.began or 0)),
        "dropped": terminal.dropped,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
