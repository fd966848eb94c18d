"""Lists the files of the user's folders that travel as they are, for modules.py."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sparkgap.errors import PlanError

_MAX_FILES = 2000


@dataclass(frozen=True)
class File:
    """A regular file here, and the path with which it travels."""

    name: str
    path: Path
    size: int

    def read(self) -> bytes:
        """Its bytes.

        Raises
        ------
        PlanError
            It cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise _unreadable(error) from error


def listed(project: Path | None, paths: Iterable[Path], what: str) -> list[File]:
    """What lies in the folder `project`, and the files and folders `paths` under their own names.

    Raises
    ------
    PlanError
        There are too many, one cannot be read, or a link leads out of its folder.
    """
    files = list(islice(_all(project, paths), _MAX_FILES + 1))
    if len(files) > _MAX_FILES:
        folder, most = Counter(str(file.path.parent) for file in files).most_common(1)[0]
        raise PlanError(
            f"more than {_MAX_FILES} files would travel with {what}, {most} of the first {len(files)} from {folder}: move those that "
            "it does not need elsewhere, and put data where the workers can read it"
        )
    return files


def name_of(path: Path) -> str:
    """The last part of a path, of ``.`` and ``..`` too."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _all(project: Path | None, paths: Iterable[Path]) -> Iterator[File]:
    if project is not None:
        yield from _Folder(project).files()
    for path in paths:
        name = name_of(path)
        if path.is_dir():
            empty = True
            for file in _Folder(path).files(f"{name}/"):
                empty = False
                yield file
            if empty:
                raise PlanError(f"modules has the folder {path}, in which there is no file that could travel")
        elif path.is_file():
            yield _file(path, name)
        else:
            raise PlanError(f"modules has the path {path}: there is no such file or folder on this machine")


class _Folder:
    """One folder that the user named, and everything below it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)

    def files(self, prefix: str = "") -> Iterator[File]:
        yield from self._below(self._root, prefix, (self._real_root,))

    def _below(self, folder: Path, prefix: str, around: tuple[str, ...]) -> Iterator[File]:
        """Links are followed; `around` are the real folders that this one is reached through."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(error) from error
        for entry in entries:
            path = Path(entry.path)
            kind = _kind(entry)
            if stat.S_ISDIR(kind) and not stays(entry):
                real = self._real(entry)
                if real in around:
                    raise PlanError(f"{path} leads back to {real}, a folder that it lies in: remove that link")
                yield from self._below(path, f"{prefix}{entry.name}/", (*around, real))
            elif stat.S_ISREG(kind) and not entry.name.endswith(".pyc"):
                self._real(entry)
                yield _file(path, f"{prefix}{entry.name}")

    def _real(self, entry: os.DirEntry[str]) -> str:
        real = os.path.realpath(entry.path)
        if entry.is_symlink() and os.path.commonpath([real, self._real_root]) != self._real_root:
            raise PlanError(
                f"{entry.path} is a link out of {self._root}, to {real}, where the workers have something else or nothing: put a copy in its "
                "place, or remove it and pass what it leads to with modules=[pathlib.Path(...)]"
            )
        return real


def _kind(entry: os.DirEntry[str]) -> int:
    """What it is, or what a link leads to; 0 for a link that leads nowhere."""
    try:
        return entry.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return 0
        raise _unreadable(error) from error


def stays(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is none of the project's own: caches, version control, environments."""
    return (
        entry.name.startswith(".")
        or entry.name == "__pycache__"
        or os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))
    )


def _file(path: Path, name: str) -> File:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise PlanError(f"the name of {os.fspath(path)!r} is no UTF-8: rename the file") from None
    try:
        return File(name, path, path.stat().st_size)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> PlanError:
    return PlanError(f"a file that has to travel cannot be read on this machine: {error}")
