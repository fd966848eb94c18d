"""Tables and times as a person reads them in a terminal, for the commands in commands.py and doctor's printing in checkup.py."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timezone

_DEFAULT_ID = 32  # characters of the hexadecimal ids that `TorchDistributor` makes up
_SHORT_ID = 8


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, or that COLUMNS says; None for files and pipes, where nothing is cut."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()):
        return None
    return shutil.get_terminal_size().columns


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Columns side by side, two spaces between them, with a line end; the last column is cut where a width is given.

    Line ends and control characters inside a cell, which are someone else's text, become spaces and question marks.
    """
    lines = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    if width is not None:
        left = max(width - sum(each + 2 for each in widths[:-1]), len(head[-1]))
        widths[-1] = min(widths[-1], left)
    return "".join(
        "  ".join(cut(cell, size).ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def plain(text: str) -> str:
    """One line of printable characters."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def cut(text: str, size: int) -> str:
    """At most `size` characters, the last one an ellipsis where something is left out."""
    return text if len(text) <= size else f"{text[: max(size - 1, 0)]}…"


def short_ids(ids: Sequence[str]) -> list[str]:
    """Beginnings that tell each id from the others, for ids that nobody has chosen; an id that somebody chose stays whole."""
    size = _SHORT_ID
    while size < _DEFAULT_ID and len({each[:size] for each in ids}) < len(set(ids)):
        size += 1
    return [each[:size] if _made_up(each) else each for each in ids]


def _made_up(run_id: str) -> bool:
    return len(run_id) == _DEFAULT_ID and not run_id.strip("0123456789abcdef")


def moment(microseconds: int) -> datetime | None:
    """A time of the messages, in UTC; None while it has not happened."""
    return datetime.fromtimestamp(microseconds / 1e6, timezone.utc) if microseconds else None


def local_time(when: datetime | None, short: bool = False) -> str:
    """In this client's time zone, to the second, or short: to the minute and without its year."""
    return "" if when is None else f"{when.astimezone():{'%m-%d %H:%M' if short else '%Y-%m-%d %H:%M:%S'}}"


def duration(seconds: float | None) -> str:
    """ "2.5 s", "3:05" or "27:00:09"."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
