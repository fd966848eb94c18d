"""What a rank leaves in its working directory, which goes with it: its keeper looks once the rank has ended, however it ended, and passes it on."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap_server import program, wire

_MOST_NAMES = 20
_MOST_NAME_CHARACTERS = 120
_MOST_ENTRIES = 20_000  # some 0.1 s on a local disk
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Leftovers:
    """Regular files: the largest by name, relative to their folder, with their bytes, and what all have together."""

    largest: tuple[tuple[str, int], ...]
    count: int
    size: int
    complete: bool  # False: there were too many to count

    def __str__(self) -> str:
        """A predicate, "left 2 files …"; empty without any file."""
        if not self.count:
            return ""
        named = ", ".join(f"{name} ({_text(size)})" for name, size in self.largest)
        if others := self.count - len(self.largest):
            rest = self.size - sum(size for _, size in self.largest)
            named += f" and {'' if self.complete else 'at least '}{others} more ({_text(rest)})"
        files = "1 file" if self.count == 1 else f"{'' if self.complete else 'more than '}{self.count} files"
        return f"left {files} in its working directory, which was removed after its end: {named}. Write what has to stay to storage outside"


def found(folder: Path) -> Leftovers:
    """Look at a folder that nobody writes to any more; one that cannot be read counts as empty, and compiled modules do not count."""
    sizes: list[tuple[int, str]] = []
    entries = 0
    for path, size in _files(folder):
        entries += 1
        if size is not None:
            sizes.append((size, os.path.relpath(path, folder)))
        if entries >= _MOST_ENTRIES:
            break
    largest = heapq.nsmallest(_MOST_NAMES, sizes, key=lambda each: (-each[0], each[1]))
    return Leftovers(
        tuple((_shown(name), size) for size, name in largest),
        len(sizes),
        sum(size for size, _ in sizes),
        entries < _MOST_ENTRIES,
    )


def frames(placement: pb.RankPlacement, private: Path) -> Iterator[bytes]:
    """For the task of a rank whose private folder this is: a line of its output and a notice, or nothing."""
    text = str(found(private / program.WORK))
    if text:
        lines = run_pb2.LogLines(stream=run_pb2.LogLines.STDERR, lines=[f"sparkgap: rank {placement.rank} {text}"])
        now = time.time_ns() // 1000
        yield wire.encode(
            pb.EVENT, run_pb2.RunEvent(attempt=placement.attempt, rank=placement.rank, time=now, log=lines)
        )
        yield wire.encode(pb.NOTICE, pb.RankNotice(rank=placement.rank, text=text))


def _files(folder: Path) -> Iterator[tuple[str, int | None]]:
    """Each entry below, with its size if it is a regular file."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name != "__pycache__":
                            waiting.append(entry.path)
                        yield entry.path, None
                    else:
                        regular = entry.is_file(follow_symlinks=False)
                        yield entry.path, entry.stat(follow_symlinks=False).st_size if regular else None
        except OSError:
            continue


def _shown(name: str) -> str:
    """One line of text, whatever bytes are in the name."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= _MOST_NAME_CHARACTERS else f"…{name[-_MOST_NAME_CHARACTERS:]}"


def _text(size: int) -> str:
    power = 0
    while size >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    if not power:
        return "1 byte" if size == 1 else f"{size} bytes"
    return f"{size / 1000**power:.3g} {_UNITS[power]}"
