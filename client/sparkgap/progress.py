"""Shows a run at the client while `TorchDistributor.run` waits: the ranks' lines with their prefix, and how far they are."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, TextIO

from sparkgap_protos.v1 import run_pb2

from sparkgap.errors import what_happened
from sparkgap.logs import Loss
from sparkgap.view import waiting

_PLAIN_SECONDS = 2.0


class Console:
    """Prints lines as they arrive. The display follows the lowest rank that has reported, in terminals and notebooks only."""

    def __init__(self) -> None:
        self._display: _Display | None = None
        self._rank: int | None = None
        self._attempt = 0

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def event(self, event: run_pb2.RunEvent) -> None:
        """Show one event."""
        if event.HasField("log"):
            if event.log.dropped:
                self._print(
                    f"[rank {event.rank}] … {event.log.dropped} lines were dropped: printed faster than the cluster takes\n",
                    sys.stderr,
                )
            stream = sys.stderr if event.log.stream == run_pb2.LogLines.STDERR else sys.stdout
            self._print("".join(f"[rank {event.rank}] {line}\n" for line in event.log.lines), stream)
        elif event.HasField("metrics"):
            self._progress(event)
        elif event.HasField("failure"):
            self._print(
                f"[sparkgap] attempt {event.attempt + 1} failed and another one starts: {_blamed(event.failure)}\n",
                sys.stderr,
            )

    def lost(self, loss: Loss) -> None:
        """Say what is missing."""
        if loss.lines != 0:
            self._print(f"[sparkgap] … {loss}\n", sys.stderr)

    def waits(self, status: run_pb2.RunStatus) -> None:
        """Say why nothing happens yet."""
        self._print(f"[sparkgap] {status.name} {waiting(status)}\n", sys.stderr)

    def _print(self, text: str, stream: TextIO) -> None:
        if self._display is not None:
            self._display.clear()
        stream.write(text)
        stream.flush()
        if self._display is not None:
            self._display.refresh()

    def _progress(self, event: run_pb2.RunEvent) -> None:
        if self._rank is None or event.rank < self._rank or event.attempt != self._attempt:
            self._close(keep=event.attempt != self._attempt)
            self._rank, self._attempt = event.rank, event.attempt
            self._display = _display(event)
        if event.rank == self._rank and self._display is not None:
            self._display.show(event.metrics, event.time / 1e6)

    def _close(self, keep: bool = True) -> None:
        if self._display is not None:
            self._display.close(keep)
            self._display = None


class _Display(Protocol):
    def show(self, metrics: run_pb2.Metrics, when: float) -> None: ...
    def clear(self) -> None: ...
    def refresh(self) -> None: ...
    def close(self, keep: bool) -> None: ...


def _display(first: run_pb2.RunEvent) -> _Display | None:
    """Nothing where nobody watches: in a file or a pipe, a bar is noise."""
    if not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _PlainLines(first.metrics.step, first.time / 1e6)
    # The rate counts from the first report on: a run that goes on from a checkpoint begins in the middle.
    step = first.metrics.step
    return _Bar(
        tqdm(
            total=first.metrics.total or None, initial=step, unit="step", desc=f"rank {first.rank}", dynamic_ncols=True
        )
    )


class _Bar:
    """A bar of tqdm, which knows terminals from notebooks, and TQDM_DISABLE."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def show(self, metrics: run_pb2.Metrics, when: float) -> None:
        self._bar.total = metrics.total or self._bar.total
        self._bar.set_postfix(_texts(metrics), refresh=False)
        self._bar.update(metrics.step - self._bar.n)
        if metrics.step == metrics.total:
            self._bar.refresh()

    def clear(self) -> None:
        self._bar.clear()

    def refresh(self) -> None:
        self._bar.refresh()

    def close(self, keep: bool) -> None:
        self._bar.leave = keep
        self._bar.refresh()
        self._bar.close()


class _PlainLines:
    """Now and then a line, where tqdm is not installed; times are those of the rank."""

    def __init__(self, step: int, when: float) -> None:
        self._first = step
        self._began = when
        self._shown = 0.0

    def show(self, metrics: run_pb2.Metrics, when: float) -> None:
        if time.monotonic() - self._shown > _PLAIN_SECONDS or metrics.step == metrics.total:
            self._shown = time.monotonic()
            sys.stderr.write(f"[sparkgap] {plain(metrics, metrics.step - self._first, when - self._began)}\n")
            sys.stderr.flush()

    def clear(self) -> None: ...
    def refresh(self) -> None: ...
    def close(self, keep: bool) -> None: ...


def plain(metrics: run_pb2.Metrics, steps: int, seconds: float) -> str:
    """Step, rate over the last `steps` steps, time to go, and figures: "step 5/20 (25%), 2.5 steps/s, 0:06 to go, loss 0.25"."""
    parts = [
        f"step {metrics.step}" + (f"/{metrics.total} ({metrics.step / metrics.total:.0%})" if metrics.total else "")
    ]
    if seconds > 0 and steps > 0:
        parts.append(f"{steps / seconds:.1f} steps/s")
        if (left := metrics.total - metrics.step) > 0:
            minutes, rest = divmod(round(left * seconds / steps), 60)
            parts.append(
                f"{minutes // 60}:{minutes % 60:02}:{rest:02} to go" if minutes >= 60 else f"{minutes}:{rest:02} to go"
            )
    return ", ".join([*parts, *(f"{name} {text}" for name, text in _texts(metrics).items())])


def _blamed(failure: run_pb2.RankFailure) -> str:
    what = what_happened(failure)
    return f"rank {failure.rank} on {failure.host}: {what}" if failure.host else what


def _texts(metrics: run_pb2.Metrics) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in sorted(metrics.values.items())}
