"""Makes a fork of the nursery the program that user code expects to find itself in; ranks and model hosts call it before they open the plan.

`begin` gives it arguments, a ``__main__`` and a working directory of its own in place of the nursery's, and `run` runs a script as that ``__main__``.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

#: Names in the private folder of a rank or model host: the working directory, and what travelled with the plan (sources.py).
WORK = "work"
SENT = "sent"


def begin(private: Path, arguments: Sequence[str]) -> Path:
    """Start over as a program with these arguments, an empty ``__main__`` and an empty working directory inside `private`.

    Returns
    -------
    Path
        An empty folder beside the working directory, for what travelled with the plan.

    Raises
    ------
    OSError
        The folders cannot be made.
    """
    private = private.absolute()
    _keep_paths()
    for folder in (private, private / WORK, private / SENT):
        folder.mkdir(mode=0o700, exist_ok=True)
    os.chdir(private / WORK)
    if (process := sys.modules.get("multiprocessing.process")) is not None:
        process.ORIGINAL_DIR = str(private / WORK)  # type: ignore[attr-defined]  # spawned children start there
    use_arguments(arguments)
    _become(ModuleType("__main__"))
    return private / SENT


def use_arguments(arguments: Sequence[str]) -> None:
    """Set ``sys.argv``, and what Python says of its whole command line."""
    sys.argv = list(arguments)
    sys.orig_argv = [sys.executable, *arguments]


def run(path: Path) -> None:
    """Run a script, or a folder with a ``__main__.py``, as ``python path`` does; its ``__main__`` stays for threads and child processes."""
    if path.is_dir():
        path = path / "__main__.py"
        spec = importlib.util.spec_from_file_location("__main__", path)
        assert spec is not None, "a path that ends in .py has a loader"
        main = importlib.util.module_from_spec(
            spec
        )  # has a spec, from which spawned children see that it is not theirs to run again
    else:
        main = ModuleType("__main__")
        main.__file__ = str(path)
        main.__loader__ = SourceFileLoader("__main__", str(path))
        main.__dict__["__cached__"] = None
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    _become(main)
    exec(code, main.__dict__)  # noqa: S102  # what the user sent is to run


def _become(main: ModuleType) -> None:
    """What children of `multiprocessing` send back names its classes by the second name."""
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


def _keep_paths() -> None:
    """Spawned interpreters start in another directory than the one that this is relative to; ``sys.path`` itself is absolute."""
    if found := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, found.split(os.pathsep)))
