"""Notices when a file that a model was loaded from has changed, so that weights written anew under the same path are not ignored.

The model host watches while make_predict_fn runs, and asks again for each task that wants the model.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager

#: (device, inode, bytes, nanoseconds of the last change), or None where the file is gone.
_State = tuple[int, int, int, int] | None

_CODE = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_VIRTUAL = ("/proc/", "/sys/", "/dev/")


class FileWitness:
    """The files that were opened for reading during a load, and what they were like then. Libraries' own files do not count."""

    def __init__(self) -> None:
        self._seen: dict[str, _State] = {}
        self._watching = 0
        sys.addaudithook(self._heard)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record what is opened for reading meanwhile; the audit hook behind it hears every thread."""
        self._seen = {}
        self._watching += 1
        try:
            yield
        finally:
            self._watching -= 1

    def changed(self) -> list[str]:
        """Files that are no longer what they were when they were opened."""
        return [path for path, state in self._seen.items() if _state(path) != state]

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not self._watching:
            return
        path, mode = arguments[0], arguments[1]
        if not isinstance(path, (str, bytes)) or (isinstance(mode, str) and not mode.startswith("r")):
            return
        full = os.path.abspath(os.fsdecode(path))
        if full not in self._seen and not _is_code(full) and os.path.isfile(full):
            self._seen[full] = _state(full)


def _is_code(path: str) -> bool:
    return path.startswith((*_CODE, *_VIRTUAL)) or path.endswith((".py", ".pyc", ".so"))


def _state(path: str) -> _State:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
