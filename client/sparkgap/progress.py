"""Shows a run at the client while `TorchDistributor.run` waits: the ranks' lines with their prefix, and a bar from what they report."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from sparkgap_protos.v1 import run_pb2

_PLAIN_SECONDS = 2.0


class Console:
    """Prints lines as they arrive. The bar follows the lowest rank that reports: tqdm in a terminal or notebook, else now and then a line."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._rank: int | None = None
        self._began = 0.0
        self._shown = 0.0

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def event(self, event: run_pb2.RunEvent) -> None:
        """Show one event."""
        if event.HasField("log"):
            stream = sys.stderr if event.log.stream == run_pb2.LogLines.STDERR else sys.stdout
            if event.log.dropped:
                self._print(
                    f"[rank {event.rank}] … {event.log.dropped} lines were dropped: printed faster than the cluster takes",
                    sys.stderr,
                )
            for line in event.log.lines:
                self._print(f"[rank {event.rank}] {line}", stream)
        elif event.HasField("metrics"):
            self._progress(event.rank, event.metrics, event.time / 1e6)

    def lost(self, events: int) -> None:
        """Say that the server's memory of the run begins later."""
        self._print(f"[sparkgap] {events} older events are no longer kept by the server", sys.stderr)

    def _print(self, text: str, stream: Any) -> None:
        if self._bar is not None:
            self._bar.clear()
        stream.write(f"{text}\n")
        stream.flush()
        if self._bar is not None:
            self._bar.refresh()

    def _progress(self, rank: int, metrics: run_pb2.Metrics, when: float) -> None:
        if self._rank is None:
            self._rank = rank
            self._began = when
            if sys.stderr.isatty() or "ipykernel" in sys.modules:
                self._bar = _tqdm(metrics.total)
        if rank != self._rank:
            return
        if self._bar is not None:
            self._bar.n = metrics.step
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in sorted(metrics.values.items())})
        elif time.monotonic() - self._shown > _PLAIN_SECONDS or metrics.step == metrics.total:
            self._shown = time.monotonic()
            self._print(f"[sparkgap] {_plain(metrics, when - self._began)}", sys.stderr)


def _tqdm(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=total or None, unit="step", leave=True)


def _plain(metrics: run_pb2.Metrics, seconds: float) -> str:
    done = f"step {metrics.step}" + (f"/{metrics.total} ({metrics.step / metrics.total:4.0%})" if metrics.total else "")
    rate = f", {metrics.step / seconds:.1f} steps/s" if seconds > 0 else ""
    values = "".join(f", {name} {value:.4g}" for name, value in sorted(metrics.values.items()))
    return done + rate + values
