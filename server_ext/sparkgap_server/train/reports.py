"""What a rank's `sparkgap.training.report` hands over, sent to the keeper several to an event; for rank.py.

A report after a pause goes out at once. Those that follow it wait for a courier, a thread that takes all of them together every tenth of a second. So
the reports of a rank all arrive, up to `RATE` a second; faster ones are thinned evenly and counted, and the newest always arrives.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import suppress

from sparkgap_protos import reporting
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap_server import wire

PAUSE = 0.1  # seconds between two events
RATE = 4000.0  # reports a second in the long run
BURST = 4096  # reports in one event, and waiting for one
MOST_VALUES = 1 << 16  # in one event
_HALF = 1 << 63

#: A report and when it was given, nanoseconds since 1970.
Timed = tuple[reporting.Report, int]


class Reporter:
    """The sink of one rank. User code may call it from any thread; it never waits for a keeper that does not read."""

    def __init__(self, placement: pb.RankPlacement, channel: socket.socket) -> None:
        self._placement = placement
        self._channel = channel
        self._owner = os.getpid()
        self._lock = threading.RLock()  # a signal handler may report while its thread reports
        self._waiting: list[Timed] = []
        self._stride = 1  # of so many reports, one joins those that wait
        self._passed: list[Timed] = []  # the newest, where it has not joined them
        self._since = 0  # reports after the newest of those that wait
        self._dropped = 0
        self._places = float(BURST)
        self._sent = float("-inf")
        self._over = False
        self._end = threading.Event()  # the same, for the courier's sleep
        self._courier: threading.Thread | None = None
        self._channel_lock = threading.Lock()
        self._writable = select.poll()
        self._writable.register(channel, select.POLLOUT)

    def __call__(self, report: reporting.Report) -> None:
        """Take a report: some 2 µs, and 50 more where it goes out at once, ten times a second at most."""
        if os.getpid() != self._owner:
            return  # a process that user code forked shares the channel and must not write into it
        with self._lock:
            if self._over or (self._stride > 1 and self._passes(report)):
                return
            self._waiting.append((report, time.time_ns()))
            if self._courier is None:
                self._begin()
            elif len(self._waiting) >= BURST:
                self._thin(BURST // 2)
                self._stride *= 2

    def _passes(self, report: reporting.Report) -> bool:
        """Whether this report does not join those that wait."""
        self._since += 1
        if self._since < self._stride:
            self._passed = [(report, time.time_ns())]
            return True
        self._dropped += self._since - 1
        self._since, self._passed = 0, []
        return False

    def finish(self) -> None:
        """Send what waits, and take nothing more; the channel is the caller's alone from here on."""
        if os.getpid() != self._owner:
            return
        self._stop()
        with self._channel_lock, suppress(OSError):
            batch, dropped = self._take()
            if batch:
                self._channel.sendall(self._frame(batch, dropped))

    def _stop(self) -> None:
        self._over = True
        self._end.set()

    def _begin(self) -> None:
        if time.monotonic() - self._sent >= PAUSE and self._send():
            return
        self._courier = threading.Thread(target=self._bring, name="sparkgap-reports", daemon=True)
        self._courier.start()

    def _bring(self) -> None:
        """What waits, every `PAUSE`, until nothing does; so it arrives although the rank has gone on to something else."""
        while not self._end.wait(PAUSE):
            with self._lock:
                if not self._waiting and not self._passed:
                    self._courier = None
                    return
            self._send()

    def _send(self) -> bool:
        """Whether all that waits could go out now. What cannot be sent waits on."""
        if not self._channel_lock.acquire(blocking=False):
            return False  # a signal handler in the midst of its own thread's sending
        try:
            if self._over:
                return False
            if not self._writable.poll(0):
                return False
            batch, dropped = self._take()
            if not batch:
                return True
            try:
                frame = self._frame(batch, dropped)
                sent = self._channel.send(frame, socket.MSG_DONTWAIT)
                if sent < len(frame):
                    self._channel.sendall(frame[sent:])  # half a frame would be the end of the conversation
            except BlockingIOError:
                self._put_back(batch, dropped)
                return False
            except OSError:
                self._stop()  # the keeper is gone, and with it everybody who would want to know
            return True
        finally:
            self._channel_lock.release()

    def _take(self) -> tuple[list[Timed], int]:
        """The reports of the next event, and how many were left out among them."""
        with self._lock:
            now = time.monotonic()
            self._places = min(float(BURST), self._places + (now - self._sent) * RATE)
            self._sent = now
            if self._passed:
                self._waiting += self._passed
                self._dropped += self._since - 1
            if not self._waiting:
                return [], 0
            widest = max(1, len(self._waiting[-1][0].values))
            self._thin(max(1, min(int(self._places), MOST_VALUES // widest)))
            batch, dropped = self._waiting, self._dropped
            self._places -= len(batch)
            self._waiting, self._passed, self._stride, self._since, self._dropped = [], [], 1, 0, 0
        return batch, dropped

    def _put_back(self, batch: list[Timed], dropped: int) -> None:
        with self._lock:
            self._waiting = batch + self._waiting
            self._places = min(float(BURST), self._places + len(batch))
            self._dropped += dropped
            self._thin(BURST // 2)

    def _thin(self, most: int) -> None:
        """Every second, third, … of those that wait, the newest among them."""
        before = len(self._waiting)
        if before > most:
            every = -(-before // most)
            self._waiting = self._waiting[(before - 1) % every :: every]
            self._dropped += before - len(self._waiting)

    def _frame(self, batch: list[Timed], dropped: int) -> bytes:
        try:
            event = _event(self._placement, batch, dropped)
        except ValueError:  # a name that no message can hold
            sendable = [each for each in batch if _is_sendable(each[0])]
            if not sendable:
                with self._lock:
                    self._dropped += dropped + len(batch)
                return b""
            event = _event(self._placement, sendable, dropped + len(batch) - len(sendable))
        return wire.encode(pb.EVENT, event)


def _event(placement: pb.RankPlacement, batch: list[Timed], dropped: int) -> run_pb2.RunEvent:
    """The newest report, with those before it by columns."""
    newest, when = batch[-1]
    metrics = run_pb2.Metrics(step=newest.step, total=newest.total or 0, values=newest.values, dropped=dropped)
    if len(batch) > 1:
        _fill(metrics.earlier, batch[:-1], newest.total, when // 1000)
    return run_pb2.RunEvent(attempt=placement.attempt, rank=placement.rank, time=when // 1000, metrics=metrics)


def _fill(columns: run_pb2.EarlierReports, batch: list[Timed], total: int | None, end: int) -> None:
    steps = [report.step for report, _ in batch]
    times = [when // 1000 for _, when in batch]
    columns.steps.extend(_differences(0, steps))
    columns.times.extend(_differences(end, times))
    if any(report.total != total for report, _ in batch):
        columns.totals.extend([report.total or 0 for report, _ in batch])
    found: dict[str, tuple[list[float], list[int]]] = {}
    for position, (report, _) in enumerate(batch):
        for name, value in report.values.items():
            if name not in found:
                found[name] = ([], [])
            values, positions = found[name]
            values.append(value)
            positions.append(position)
    for name, (values, positions) in found.items():
        columns.metrics.add(name=name, values=values, reports=positions if len(positions) < len(batch) else ())


def _differences(first: int, numbers: list[int]) -> list[int]:
    """Each less the one before it, as 64 bits hold it."""
    return [
        (later - earlier + _HALF) % (2 * _HALF) - _HALF
        for earlier, later in zip([first, *numbers], numbers, strict=False)
    ]


def _is_sendable(report: reporting.Report) -> bool:
    try:
        run_pb2.Metrics(values=report.values)
    except ValueError:
        return False
    return True
