"""What the ranks of a run have printed, as `Run.logs` gives it out, and how much of it is missing; `Run` reads the events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from sparkgap_protos.v1 import run_pb2

from sparkgap.entrance import entrance

_STREAMS = {run_pb2.LogLines.STDOUT: "stdout", run_pb2.LogLines.STDERR: "stderr"}


@dataclass(frozen=True)
class LogLine:
    """One line that a rank printed."""

    rank: int
    attempt: int
    time: datetime
    stream: str
    text: str

    def __str__(self) -> str:
        return f"[rank {self.rank}] {self.text}"


@dataclass(frozen=True)
class Loss:
    """Events that the server no longer had, and the lines in them as far as it knows."""

    events: int
    lines: int | None

    def __str__(self) -> str:
        what = f"{self.events} events (lines and reports)" if self.lines is None else f"{self.lines} lines"
        return (
            f"{what} came faster than they are read here and are missing: the server keeps the newest events only, "
            "up to spark.sparkgap.events.maxBytes"
        )


class Cursor:
    """How far a reader has come in a run's events."""

    def __init__(self, sequence: int = 0) -> None:
        self.sequence = sequence
        self._lines = None if sequence else 0  # printed before, lost ones counted

    def advance(self, page: run_pb2.RunEvents) -> Loss | None:
        """Go behind these events; returns what is missing before and between them."""
        next_line = page.next_line if page.HasField("next_line") else None
        lines = None
        if next_line is not None and self._lines is not None:
            lines = next_line - self._lines - sum(len(event.log.lines) + event.log.dropped for event in page.events)
        loss = Loss(page.dropped, lines) if page.dropped or lines else None
        self.sequence = page.next_sequence
        self._lines = next_line
        return loss


#: Reads a run's events, and tells of each loss when it comes to it.
Pages = Callable[[Callable[[Loss], None]], Iterator[run_pb2.Reply]]


@entrance
class Logs(Iterator[LogLine]):
    """Lines of a run, in the order in which they reached the server; an iterator.

    Attributes
    ----------
    dropped : int
        Lines missing up to here: those that the chosen ranks printed faster than the cluster takes, and those of all ranks that the server no longer
        had. Grows while the lines are read.
    """

    def __init__(self, pages: Pages, rank: int | None, since: datetime | None) -> None:
        self.dropped = 0
        self._lines = self._read(pages, rank, since)

    def __next__(self) -> LogLine:
        return next(self._lines)

    def _read(self, pages: Pages, rank: int | None, since: datetime | None) -> Iterator[LogLine]:
        for reply in pages(self._lost):
            for event in reply.events.events:
                if not event.HasField("log") or rank not in (None, event.rank):
                    continue
                self.dropped += event.log.dropped
                for line in lines_of(event):
                    if since is None or line.time >= since:
                        yield line

    def _lost(self, loss: Loss) -> None:
        self.dropped += loss.lines or 0


def lines_of(event: run_pb2.RunEvent) -> Iterator[LogLine]:
    """The lines in one event."""
    when = datetime.fromtimestamp(event.time / 1e6, timezone.utc)
    for text in event.log.lines:
        yield LogLine(event.rank, event.attempt, when, _STREAMS.get(event.log.stream, "stdout"), text)
