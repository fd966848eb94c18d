"""Finds the data files that lie beside the modules of packages that travel, for modules.py: ``Path(__file__).parent / "conf.json"`` is one.

Beside means in the same folder, or in folders below it that hold no Python. All such files of a package travel, or none: a package with more than a
few of them has a data set or checkpoints in it, which nobody asked for, and the rank that misses one is told how to send it. Files beside a module of
no package stay, since that folder is a whole project or a home. Nothing here is an error: a file that cannot be looked at stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparkgap_protos import places

from sparkgap.folders import File, stays
from sparkgap.sources import Source

#: Of one package, by its name before the first dot.
MAX_BYTES = 4 << 20
MAX_FILES = 200

_MAX_LOOKED_AT = 4000  # entries of folders, so that a package with a data set in it costs milliseconds
_NO_DATA = (
    ".py",
    ".pyc",
    ".pyo",
    ".pyi",
    ".ipynb",
)  # a notebook beside the modules changes whenever it is saved, and with it a model's identity


def beside(sources: Iterable[Source], room: int) -> list[File]:
    """The data files of these modules' packages, by package as far as they are within the limits and fit into `room` bytes together."""
    packages: dict[str, dict[str, Path]] = {}
    for source in sources:
        prefix, slash, _ = places.of_name(source.name, source.is_package).rpartition("/")
        if slash:
            packages.setdefault(prefix.partition("/")[0], {})[prefix] = source.path.parent
    found: list[File] = []
    for name in sorted(packages):
        files = _within_limits(packages[name], room)
        room -= sum(file.size for file in files)
        found += files
    return found


def _within_limits(folders: dict[str, Path], room: int) -> list[File]:
    files: list[File] = []
    left, looked_at = min(MAX_BYTES, room), 0
    for file in _below(folders):
        looked_at += 1
        if file is None:
            if looked_at > _MAX_LOOKED_AT:
                return []
            continue
        files.append(file)
        left -= file.size
        if left < 0 or len(files) > MAX_FILES or looked_at > _MAX_LOOKED_AT:
            return []
    return sorted(files, key=lambda each: each.name)


def _below(folders: dict[str, Path]) -> Iterator[File | None]:
    """Data files, and None for each other entry that was looked at."""
    code = set(folders.values())
    agenda = list(folders.items())
    while agenda:
        prefix, folder = agenda.pop()
        try:
            entries = list(_some(folder))
        except OSError:
            continue
        if folder not in code and any(entry.name.endswith(".py") for entry in entries):
            continue
        for entry in entries:
            path = folder / entry.name
            yield _data(entry, f"{prefix}/{entry.name}")
            if entry.is_dir(follow_symlinks=False) and not stays(entry) and path not in code:
                agenda.append((f"{prefix}/{entry.name}", path))


def _some(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Entries of a folder, up to one more than may be looked at."""
    with os.scandir(folder) as entries:
        for _, entry in zip(range(_MAX_LOOKED_AT + 1), entries, strict=False):
            yield entry


def _data(entry: os.DirEntry[str], name: str) -> File | None:
    """A regular file that user code may read; hidden ones hold secrets and the state of tools, and links lead elsewhere."""
    if entry.name.startswith(".") or entry.name.endswith(_NO_DATA) or not entry.is_file(follow_symlinks=False):
        return None
    try:
        name.encode()
        return File(name, Path(entry.path), entry.stat().st_size) if os.access(entry.path, os.R_OK) else None
    except (OSError, UnicodeEncodeError):
        return None
