"""`make stress`: mixed runs and predictions on one server for minutes, beside busy processes.

Every result is checked, and nothing may be left or grow.

    python tests/stress/stress.py [--runs 500] [--predictions 500] [--seconds 600] [--seed N] [--busy 2] [--clients 3]

It ends with status 1 where an action had another result than it should have, where something is left, or where descriptors, threads or memory grow.
The seed that it prints repeats the same actions for each client; their interleaving is the machine's.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean

import psutil
from pyspark.sql import SparkSession

sys.path.insert(0, str(Path(__file__).parent))
import actions
import vitals
from sparkgap_server.local import LocalServer
from vitals import Vitals

ROUNDS = 10
SECONDS_EACH = 90
SETTLED = 3  # rounds in which caches, pools and the heap still fill


@contextmanager
def busy(processes: int) -> Iterator[None]:
    started = [
        subprocess.Popen([sys.executable, "-c", "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"])
        for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


class Client(threading.Thread):
    """One user's session, which acts in rounds."""

    def __init__(self, url: str, number: int, seed: int, shares: tuple[int, int]) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._number = number
        self._url = url
        self._draw = random.Random(f"{seed}-{number}")
        self._kinds = [True] * shares[0] + [False] * shares[1]
        self._draw.shuffle(self._kinds)
        self.go, self.rest = threading.Event(), threading.Event()
        self._share = -(-len(self._kinds) // ROUNDS)
        self.over_at = float("inf")

    def run(self) -> None:
        spark = SparkSession.builder.remote(self._url).create()
        try:
            for _ in range(ROUNDS):
                self.go.wait()
                self.go.clear()
                for _ in range(self._share):
                    if self._kinds and time.monotonic() < self.over_at:
                        self._act(spark, self._kinds.pop())
                self.rest.set()
        except BaseException:
            self._is_wrong(f"{self.name} ended: {traceback.format_exc()}")
            self.rest.set()
        finally:
            spark.stop()

    def _act(self, spark: SparkSession, is_run: bool) -> None:
        action = actions.drawn(self._draw, is_run)
        draw = random.Random(self._draw.randrange(1 << 62))
        what = f"{self.name}, action {sum(self.done.values())}, {action.__name__}"
        began = time.monotonic()
        try:
            action(spark, draw)
        except actions.Wrong as problem:
            self._is_wrong(f"{what}: {problem}")
        except Exception:
            self._is_wrong(f"{what}: {traceback.format_exc()}")
        self.done[action.__name__] += 1
        if (took := time.monotonic() - began) > SECONDS_EACH:
            self._is_wrong(f"{what} took {took:.0f} s")

    def _is_wrong(self, what: str) -> None:
        self.wrong.append(what)
        print(what, file=sys.__stdout__, flush=True)


def growth(seen: list[Vitals]) -> list[str]:
    """What is larger in the last third of the settled rounds than in the first, beyond what comes and goes."""
    settled = seen[SETTLED:]
    third = max(1, len(settled) // 3)
    found = []
    for name, slack, share in [
        ("jvm_descriptors", 12, 0.0),
        ("jvm_threads", 12, 0.0),
        ("jvm_memory", 48, 0.10),
        ("nursery_descriptors", 4, 0.0),
        ("nursery_memory", 8, 0.10),
    ]:
        first, last = (mean(getattr(each, name) for each in part) for part in (settled[:third], settled[-third:]))
        if last > first * (1 + share) + slack:
            found.append(f"{name} grows: {first:.0f} at first, {last:.0f} at last")
    return found + [f"left behind: {each}" for each in seen if each.ranks or each.folders]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--predictions", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=600, help="actions that have not begun by then are left out")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--busy", type=int, default=2, help="processes beside that only compute")
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    actions.by_value()
    conf = {
        "spark.driver.memory": "1g",
        "spark.sparkgap.events.maxBytes": "4m",
        "spark.sparkgap.runs.keptBytes": "64m",
        "spark.sparkgap.host.idleTimeout": "20s",  # models that end their process are all different ones
    }
    seen: list[Vitals] = []
    shown = sys.stdout
    with (
        LocalServer("local[4]", conf=conf, start_timeout=180) as server,
        busy(options.busy),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),  # what ranks print, and what `run` says while it waits
        redirect_stderr(nowhere),
    ):
        shares = (options.runs // options.clients, options.predictions // options.clients)
        clients = [Client(server.url, number, options.seed, shares) for number in range(options.clients)]
        began = time.monotonic()
        for client in clients:
            client.over_at = began + options.seconds
            client.start()
        for _ in range(ROUNDS):
            for client in clients:
                client.go.set()
            for client in clients:
                client.rest.wait()
                client.rest.clear()
            seen.append(vitals.at_rest(server.pid, server.log.parent))
            done = sum((client.done for client in clients), Counter[str]())
            wrong = [each for client in clients for each in client.wrong]
            spent = time.monotonic() - began
            print(f"{spent:4.0f} s, {done.total()} actions, {len(wrong)} wrong: {seen[-1]}", file=shown, flush=True)
        for client in clients:
            client.join()
        family = psutil.Process(server.pid).children(recursive=True)
        folder = server.log.parent
    known = len(wrong)
    wrong += growth(seen)
    wrong += [f"outlives the server: {each}" for each in psutil.wait_procs(family, timeout=10)[1]]
    wrong += [f"the server has left {each}" for each in folder.glob("*")] if folder.exists() else []
    print(", ".join(f"{count} {name}" for name, count in sorted(done.items())))
    for each in wrong[known:]:
        print(each)
    print(f"{done.total() - known} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
