"""What Python does at the end of a process, for rank.py: a rank is a fork and ends by `os._exit`, which does none of it."""

from __future__ import annotations

import atexit
import threading


def status_of(error: BaseException) -> int:
    """The exit status of a process that ends by this exception: of `SystemExit` the low byte of its number, 0 for none, 1 for a text."""
    code = error.code if isinstance(error, SystemExit) else 1
    if code is None:
        return 0
    if not isinstance(code, int):
        return 1
    return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF


def last_words(error: BaseException, trace: str) -> str:
    """What is printed to standard error: the traceback, of `SystemExit` its text alone."""
    if not isinstance(error, SystemExit):
        return trace
    return "" if error.code is None or isinstance(error.code, int) else f"{error.code}\n"


def finish() -> None:
    """Wait for the threads that are no daemons, then call the exit handlers; `multiprocessing` ends its forked children in the same way."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
