"""What a rank's `sparkgap.training.report` hands over, sent to the keeper as events at a bounded rate; for rank.py.

A burst goes out at once. After it, the newest report waits for the next one of `RATE` places a second and takes the place of the one that waited
before it, which is counted. The newest of all goes out when the rank has nothing more to say.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from sparkgap_protos import reporting
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap_server import wire

RATE = 10.0
BURST = 100.0


class Reporter:
    """The sink of one rank. User code may call it from any thread; it never waits for a keeper that does not read."""

    def __init__(self, placement: pb.RankPlacement, channel: socket.socket) -> None:
        self._placement = placement
        self._channel = channel
        self._owner = os.getpid()
        self._lock = threading.RLock()  # a signal handler may report while its thread reports
        self._waiting: tuple[reporting.Report, int] | None = None
        self._dropped = 0
        self._places = BURST
        self._counted = time.monotonic()
        self._end = threading.Event()
        self._courier: threading.Thread | None = None

    def __call__(self, report: reporting.Report) -> None:
        """Take a report: some 2 µs, and 30 more where it goes out."""
        if os.getpid() != self._owner:
            return  # a process that user code forked shares the channel and must not write into it
        with self._lock:
            if self._end.is_set():
                return
            if self._waiting is not None:
                self._dropped += 1
            self._waiting = (report, time.time_ns())
            if self._courier is None and not self._send():
                self._courier = threading.Thread(target=self._bring, name="sparkgap-reports", daemon=True)
                self._courier.start()

    def finish(self) -> None:
        """Send what waits, and take nothing more; the channel is the caller's alone from here on."""
        if os.getpid() != self._owner:
            return
        with self._lock, suppress(OSError, ValueError):
            self._end.set()
            if self._waiting is not None:
                self._channel.sendall(self._frame(*self._waiting))

    def _bring(self) -> None:
        """The newest report, whenever there is a place, until none waits; so it arrives although the rank has gone on to something else."""
        while not self._end.wait(1 / RATE):
            with self._lock:
                if self._waiting is None or self._end.is_set():
                    self._courier = None
                    return
                self._send()

    def _send(self) -> bool:
        now = time.monotonic()
        self._places = min(BURST, self._places + (now - self._counted) * RATE)
        self._counted = now
        if self._waiting is None or self._places < 1:
            return False
        try:
            frame = self._frame(*self._waiting)
            sent = self._channel.send(frame, socket.MSG_DONTWAIT)
            if sent < len(frame):
                self._channel.sendall(frame[sent:])  # half a frame would be the end of the conversation
        except BlockingIOError:
            return False
        except ValueError:  # a name that no message can hold
            self._waiting = None
            self._dropped += 1
            return True
        except OSError:
            self._end.set()  # the keeper is gone, and with it everybody who would want to know
            return True
        self._places -= 1
        self._waiting = None
        self._dropped = 0
        return True

    def _frame(self, report: reporting.Report, when: int) -> bytes:
        metrics = run_pb2.Metrics(
            step=report.step, total=report.total or 0, values=report.values, dropped=self._dropped
        )
        event = run_pb2.RunEvent(
            attempt=self._placement.attempt, rank=self._placement.rank, time=when // 1000, metrics=metrics
        )
        return wire.encode(pb.EVENT, event)
