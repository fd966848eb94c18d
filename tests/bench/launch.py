"""How long two ranks take from the client's call to the first line of `main_fn`, and until the value of an all-reduce is back.

Four ways in turn, on this machine, in one call: sparkgap in a session that has run before, sparkgap in a fresh session, pyspark's TorchDistributor
and plain torchrun. The machine is shared, so the ratios count, not the seconds:

    python tests/bench/launch.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pyspark.sql import SparkSession
from sparkgap import TorchDistributor
from sparkgap_server.java import find_java
from sparkgap_server.local import LocalServer

RANKS = 2
Launch = Callable[[], tuple[float, float]]  # called at the start; returns times of first line and value


def main_fn() -> tuple[float, float]:
    """What every way runs: the time of its first line, and an all-reduce over gloo."""
    import time

    first = time.time()

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return first, total.item()


def main() -> None:
    options = parse_options()
    with ExitStack() as cleanup:
        server = cleanup.enter_context(LocalServer("local[4]"))
        session = SparkSession.builder.remote(server.url).create()
        cleanup.callback(session.stop)
        ways: dict[str, Launch] = {
            "sparkgap": lambda: launch_sparkgap(session),
            "sparkgap, fresh session": lambda: launch_in_fresh_session(server.url),
            "pyspark TorchDistributor": cleanup.enter_context(pyspark_distributor()),
            "torchrun": cleanup.enter_context(torchrun()),
        }
        ways["sparkgap"]()  # the server's first run ever; the figures are for the second one onward
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name, launch in ways.items():
                rounds[name].append(timed(launch))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    report(rounds, options.json)


def timed(launch: Launch) -> tuple[float, float]:
    called = time.time()
    first, value = launch()
    return first - called, value - called


def launch_sparkgap(session: SparkSession) -> tuple[float, float]:
    first, total = TorchDistributor(RANKS, local_mode=False, use_gpu=False, spark=session).run(main_fn)
    assert total == RANKS
    return first, time.time()


def launch_in_fresh_session(url: str) -> tuple[float, float]:
    session = SparkSession.builder.remote(url).create()
    try:
        return launch_sparkgap(session)
    finally:
        session.stop()


PYSPARK = """
import sys, time
from pyspark import cloudpickle
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession
sys.path.insert(0, {folder!r})
import launch
from launch import RANKS, main_fn
cloudpickle.register_pickle_by_value(launch)
spark = SparkSession.builder.master("local[4]").config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").getOrCreate()
print("ready", flush=True)
for line in sys.stdin:
    first, total = TorchDistributor(RANKS, local_mode=False, use_gpu=False).run(main_fn)
    assert total == RANKS
    print("times", first, time.time(), flush=True)
"""


@contextmanager
def pyspark_distributor() -> Iterator[Launch]:
    """A classic session in a process of its own, started before the clock and kept for all rounds."""
    script = PYSPARK.format(folder=str(Path(__file__).parent))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "PYSPARK_"))}
    environment |= {"JAVA_HOME": str(find_java().resolve().parent.parent), "PYSPARK_PYTHON": sys.executable}
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed below, after the process that writes it
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await_line(process, "ready", errors)

        def launch() -> tuple[float, float]:
            process.stdin.write("go\n")
            process.stdin.flush()
            _, first, value = await_line(process, "times", errors).split()
            return float(first), float(value)

        yield launch
    finally:
        process.stdin.close()
        process.wait(60)
        errors.close()


def await_line(process: subprocess.Popen[str], start: str, errors: IO[str]) -> str:
    for line in process.stdout:
        if line.startswith(start):
            return line
    errors.seek(0)
    raise SystemExit(f"pyspark's process ended with status {process.wait(10)}:\n{errors.read()[-4000:]}")


@contextmanager
def torchrun() -> Iterator[Launch]:
    """A new torchrun for each launch, as people use it; rank 0 prints its first line and the value."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(
            f"import os, sys, time\nfirst = time.time()\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\ntotal = torch.ones(1)\n"
            "dist.all_reduce(total)\ndist.destroy_process_group()\n"
            "if os.environ['RANK'] == '0': print('times', first, total.item())\n"
        )
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={RANKS}",
            str(script),
        ]

        def launch() -> tuple[float, float]:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            ended = time.time()
            _, first, total = next(line for line in done.stdout.splitlines() if line.startswith("times")).split()
            assert float(total) == RANKS
            return float(first), ended

        yield launch


def report(rounds: dict[str, list[tuple[float, float]]], json_file: Path | None) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in rounds.items()
    }
    base = medians["sparkgap"]
    print(f"\n{RANKS} ranks, gloo all-reduce, median of {len(rounds['sparkgap'])} rounds\n")
    print(f"{'':<26}{'first line':>12}{'ratio':>8}{'value back':>13}{'ratio':>8}")
    for name, (first, value) in medians.items():
        print(f"{name:<26}{first:>10.3f} s{first / base[0]:>8.1f}{value:>11.3f} s{value / base[1]:>8.1f}")
    if json_file is not None:
        json_file.write_text(json.dumps({"ranks": RANKS, "rounds": rounds, "medians": medians}, indent=2))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
