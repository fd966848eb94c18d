"""A run that does nothing but show that runs work, for ``sparkgap doctor --try N``; checkup.py says what came of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkgap.distributor import TorchDistributor
from sparkgap.errors import ProtocolError

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession

_SECONDS = 60.0


@dataclass(frozen=True)
class Trial:
    """Seconds from the submit to the first line and to the value, and where the first line came from."""

    line_seconds: float
    value_seconds: float
    line: str


def greet() -> int:
    """What each rank does: a line, and its number. The workers have this module, so it is pickled as a name."""
    import socket

    rank = int(os.environ["RANK"])
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} on {socket.gethostname()}", flush=True)  # noqa: T201
    return rank


def start(session: SparkSession, ranks: int) -> Trial:
    """Run it on so many CPU ranks.

    Raises
    ------
    SparkgapError
        As any run does.
    TimeoutError
        It has no value after a minute; it is cancelled.
    """
    begin = time.monotonic()
    distributor = TorchDistributor(
        ranks, local_mode=False, use_gpu=False, spark=session, name="sparkgap doctor", results="all"
    )
    run = distributor.submit(greet)
    try:
        while not (lines := list(run.logs())) and time.monotonic() < begin + _SECONDS and not run.wait(0.01):
            pass
        line_seconds = time.monotonic() - begin
        values = run.result(max(_SECONDS - line_seconds, 0.01))
    except TimeoutError as error:
        run.cancel("it took too long for sparkgap doctor")
        raise TimeoutError(f"no value after {_SECONDS:g} s ({error}); the run is cancelled") from None
    except KeyboardInterrupt:
        run.cancel("interrupted at the client (Ctrl-C)")
        raise
    value_seconds = time.monotonic() - begin
    lines = lines or list(run.logs())
    if values != list(range(ranks)):
        raise ProtocolError(
            f"the ranks' values are {values} instead of their numbers: install the same release on both sides"
        )
    return Trial(line_seconds, value_seconds, lines[0].text if lines else "")
