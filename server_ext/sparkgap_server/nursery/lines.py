"""Cuts what a rank prints into lines, for its keeper."""

from __future__ import annotations

from sparkgap_protos.v1 import run_pb2

#: A longer line is cut, and says so.
MAX_LINE_BYTES = 64 << 10


class LineCollector:
    """Collects the bytes of one stream until a line is whole.

    Of a line that overwrites itself with carriage returns, as progress bars do, the last state counts, as on a terminal.
    """

    def __init__(self, stream: run_pb2.LogLines.Stream) -> None:
        self.stream = stream
        self.dropped = 0  # lines that were collected and could not be passed on
        self._rest = bytearray()
        self._cut = 0
        self._returned = False  # to the start of the line, so that what comes next overwrites it

    def feed(self, data: bytes) -> list[str]:
        """Lines that are whole now; empty `data` is the end of the stream and flushes the rest."""
        if not data:
            last = self._finish() if self._rest or self._cut else None
            return [] if last is None else [last]
        lines = []
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._take(part)
            lines.append(self._finish())
        self._take(rest)
        return lines

    def _take(self, part: bytes) -> None:
        if not part:
            return
        start = part.rfind(b"\r", 0, -1) + 1  # the last byte may be the first half of a line end
        if start or self._returned:
            self._rest.clear()
            self._cut = 0
        self._returned = part.endswith(b"\r")
        room = MAX_LINE_BYTES - len(self._rest)
        self._rest += part[start : start + room]
        self._cut += max(0, len(part) - start - room)

    def _finish(self) -> str:
        line = bytes(self._rest).removesuffix(b"\r").decode("utf-8", "backslashreplace")
        if self._cut:
            line += f" … [{self._cut} bytes cut]"
        self._rest.clear()
        self._cut = 0
        self._returned = False
        return line
