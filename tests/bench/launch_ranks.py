"""What the ranks of launch.py do: as functions, and as a script that is given the file for rank 0's times. It imports nothing heavy at its top."""

from __future__ import annotations

import time

FIRST = time.time()

LINE = "x" * 79  # and the line's end


def main_fn() -> tuple[float, float]:
    """What every way runs: the time of its first line, and an all-reduce over gloo."""
    first = time.time()
    return first, total_of_ranks()


def total_of_ranks() -> float:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return total.item()


def script(answer: str) -> None:
    import os

    total = total_of_ranks()
    if os.environ["RANK"] == "0":
        with open(answer, "w") as file:
            file.write(f"{FIRST} {total}")


def report_loops(calls: int) -> dict[str, float]:
    """Microseconds a call: of a function that does nothing, of a report of a step alone, and of one with three metrics."""
    from sparkgap import training

    def nothing(step: int, total: int | None = None, **metrics: float) -> None: ...

    found = {}
    for name, function in {"nothing": nothing, "report": training.report}.items():
        began = time.perf_counter()
        for step in range(1, calls + 1):
            function(step)
        found[name] = (time.perf_counter() - began) / calls * 1e6
        began = time.perf_counter()
        for step in range(1, calls + 1):
            function(step, calls, loss=1.5, accuracy=0.25, rate=0.1)
        found[f"{name}, 3 metrics"] = (time.perf_counter() - began) / calls * 1e6
    return found


def print_loops(lines: int) -> dict[str, float]:
    """Seconds to print lines of 80 bytes to nowhere, into a pipe that `cat` reads, and to where a rank prints."""
    import os
    import subprocess

    found = {}
    rank_prints = os.dup(1)
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert cat.stdin is not None
    for name, target in {"/dev/null": os.open(os.devnull, os.O_WRONLY), "cat": cat.stdin.fileno()}.items():
        os.dup2(target, 1)
        found[name] = print_lines(lines)
    os.dup2(rank_prints, 1)
    cat.stdin.close()
    cat.wait(60)
    found["rank"] = print_lines(lines)
    return found


def print_lines(lines: int) -> float:
    began = time.perf_counter()
    for _ in range(lines):
        print(LINE)
    return time.perf_counter() - began


if __name__ == "__main__":
    import sys

    script(sys.argv[1])
