"""The ways of launching ranks that launch.py times in turn: sparkgap's, pyspark's TorchDistributor and torchrun, each with a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import launch_ranks
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from sparkgap import TorchDistributor
from sparkgap_server.java import find_java
from sparkgap_server.local import LocalServer

cloudpickle.register_pickle_by_value(
    launch_ranks
)  # else its source travels and is imported, which a function in a notebook is not

SCRIPT = Path(launch_ranks.__file__)
SLOTS = 8
MOST_ROUNDS = 3  # where a round takes long, or differs little from the next
LAUNCH_SECONDS = 120
START_SECONDS = 120

Times = tuple[float, float]
"""Seconds from the call to the first line of rank 0's code, and until the value, or a script's end, is known to the caller."""

Launch = Callable[[], Times]


@contextmanager
def deadline(seconds: int, what: str) -> Iterator[None]:
    """Raise in the block once the time is over; only the main thread may ask for it, and only once at a time."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not within {seconds} s: {what}")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def timed(name: str, launch: Callable[[], Times], ranks: int) -> Times:
    """Call a way that answers with the time of the first line and the sum over the ranks."""
    with deadline(LAUNCH_SECONDS, f"{name} with {ranks} ranks"):
        called = time.time()
        first, total = launch()
        ended = time.time()
    assert total == ranks, f"{name}: {total} of {ranks} ranks have met"
    return first - called, ended - called


@contextmanager
def server(**conf: str) -> Iterator[LocalServer]:
    """A server with everything switched on: it keeps its runs on disk."""
    with tempfile.TemporaryDirectory() as runs:
        settings = {"spark.sparkgap.runs.dir": f"file://{runs}", **conf}
        with LocalServer(f"local[{SLOTS}]", conf=settings, start_timeout=START_SECONDS) as started:
            yield started


@contextmanager
def session(url: str) -> Iterator[SparkSession]:
    made = SparkSession.builder.remote(url).create()
    try:
        yield made
    finally:
        made.stop()


def sparkgap(spark: SparkSession, ranks: int) -> Launch:
    def launch() -> Times:
        return TorchDistributor(ranks, local_mode=False, use_gpu=False, spark=spark).run(launch_ranks.main_fn)  # type: ignore[no-any-return]

    return lambda: timed("sparkgap", launch, ranks)


def sparkgap_in_fresh_session(url: str, ranks: int) -> Launch:
    """The session is made on the clock and stopped off it."""

    def launch() -> Times:
        started = time.time()
        with session(url) as spark:
            made = time.time() - started
            first, value = sparkgap(spark, ranks)()
        return made + first, made + value

    return launch


def sparkgap_script(spark: SparkSession, ranks: int) -> Launch:
    def launch() -> Times:
        with answer_file() as answer:
            TorchDistributor(ranks, local_mode=False, use_gpu=False, spark=spark).run(SCRIPT, answer)
            return read(answer)

    return lambda: timed("sparkgap's script", launch, ranks)


def torchrun(ranks: int) -> Launch:
    """A new torchrun for each launch, as people use it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT)]

    def launch() -> Times:
        with answer_file() as answer:
            process = subprocess.Popen(
                [*command, str(answer)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            try:
                _, errors = process.communicate()
            except TimeoutError:
                process.terminate()  # which it passes on to its ranks
                process.communicate(timeout=60)
                raise
            assert process.returncode == 0, errors[-4000:]
            return read(answer)

    return lambda: timed("torchrun", launch, ranks)


@contextmanager
def answer_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "answer")


def read(answer: Path) -> Times:
    first, total = answer.read_text().split()
    return float(first), float(total)


PYSPARK = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import launch_ranks
from pyspark import cloudpickle
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession
cloudpickle.register_pickle_by_value(launch_ranks)
spark = (
    SparkSession.builder.master("local[{SLOTS}]").config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1").getOrCreate()
)
print("ready", flush=True)
for line in sys.stdin:
    ranks, answer = line.split()
    distributor = TorchDistributor(int(ranks), local_mode=False, use_gpu=False)
    if answer == "-":
        print("times", *distributor.run(launch_ranks.main_fn), flush=True)
    else:
        distributor.run({str(SCRIPT)!r}, answer)
        print("done", flush=True)
"""


@dataclass(frozen=True)
class Pyspark:
    """pyspark's TorchDistributor in a classic session in a process of its own, started before the clock."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def function(self, ranks: int) -> Launch:
        def launch() -> Times:
            _, first, total = self._ask(f"{ranks} -", "times").split()
            return float(first), float(total)

        return lambda: timed("pyspark", launch, ranks)

    def script(self, ranks: int) -> Launch:
        def launch() -> Times:
            with answer_file() as answer:
                self._ask(f"{ranks} {answer}", "done")
                return read(answer)

        return lambda: timed("pyspark's script", launch, ranks)

    def _ask(self, request: str, answer: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        return self.await_line(answer)

    def await_line(self, start: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        self.errors.seek(0)
        raise RuntimeError(
            f"pyspark's process ended with status {self.process.wait(10)}:\n{self.errors.read()[-4000:]}"
        )


@contextmanager
def pyspark() -> Iterator[Pyspark]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "PYSPARK_"))}
    environment |= {"JAVA_HOME": str(find_java().resolve().parent.parent), "PYSPARK_PYTHON": sys.executable}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PYSPARK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
        )  # fmt: skip
        peer = Pyspark(process, errors)
        try:
            with deadline(START_SECONDS, "pyspark's session"):
                peer.await_line("ready")
            yield peer
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """By the end of its standard input, which an idle process waits for, or at last by force."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
