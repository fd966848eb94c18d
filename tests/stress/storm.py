"""A storm of lines while the driver stands still: what executors have under way to it is bounded, and each line is kept or counted.

    python tests/stress/storm.py [--ranks 20] [--pause 8]

Two executors of their own; the ranks print as fast as they can, and the driver is stopped (SIGSTOP) in the midst of it. The resident memory of driver
and executors is printed; it ends with status 1 where an executor grows by more than 64 MiB meanwhile, or a line is neither kept nor counted.
"""

from __future__ import annotations

import argparse
import sys
import time

import psutil
from pyspark.sql import SparkSession
from sparkgap import TorchDistributor
from sparkgap_server.local import LocalServer

MIB = 1 << 20
BEFORE, AFTER = 6.0, 6.0
"""Seconds of printing before and after the pause."""


def printing(seconds: float) -> int:
    """In each rank; gives the number of its lines."""
    import os
    import time

    lines = (b"x" * 99 + b"\n") * 200
    end = time.time() + seconds
    printed = 0
    while time.time() < end:
        os.write(1, lines)
        printed += 200
    return printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=20)
    parser.add_argument("--pause", type=float, default=8)
    options = parser.parse_args()
    with LocalServer("local-cluster[2,1,1024]", conf={"spark.driver.memory": "1g"}, start_timeout=180) as server:
        spark = SparkSession.builder.remote(server.url).create()
        TorchDistributor(2, local_mode=False, use_gpu=False, spark=spark).run(int)  # both nurseries are up
        driver = psutil.Process(server.pid)
        executors = [each for each in driver.children(recursive=True) if "CoarseGrained" in " ".join(each.cmdline())]

        def resident() -> list[int]:
            return [each.memory_info().rss // MIB for each in (driver, *executors)]

        run = TorchDistributor(options.ranks, use_gpu=False, spark=spark, results="all").submit(
            printing, BEFORE + options.pause + AFTER
        )
        next(iter(run.logs(follow=True)))
        time.sleep(BEFORE)
        driver.suspend()
        stopped = resident()
        time.sleep(options.pause)
        paused = resident()
        driver.resume()
        printed = sum(run.result(timeout=120))
        logs = run.logs()
        kept = sum(1 for _ in logs)
        spark.stop()
    grown = max(after - before for before, after in zip(stopped[1:], paused[1:], strict=True))
    print(f"MiB of driver and executors: {stopped} when the driver was stopped, {paused} after {options.pause:g} s")
    print(f"{printed} lines: {kept} kept, {logs.dropped} counted as dropped")
    return 0 if grown <= 64 and kept + logs.dropped == printed else 1


if __name__ == "__main__":
    sys.exit(main())
