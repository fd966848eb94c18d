"""What Python does at the end of a process, for rank.py: a rank is a fork and ends by `os._exit`, which does none of it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NoReturn

_QUIET_SECONDS = 5.0  # before a line says for whom a rank waits
_STACK_LINES = 12
_MOST_NAMES = 8
_LIBRARY = sysconfig.get_path("stdlib")


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


def say(text: str) -> None:
    """Print to standard error, if user code has left it usable."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except Exception:
        return


def await_others(limit: float | None, give_up: Callable[[str], None]) -> None:
    """Wait as Python does before it ends: for threads, then for children of `multiprocessing`, for neither where they are daemons.

    Idle threads of executors are told to end. After 5 s a line on standard error says for whom it waits.

    Parameters
    ----------
    limit
        Seconds, or None for as long as it takes.
    give_up
        Called once they are over, in a thread of its own, with the names of those that still run and where; it has to end the process, as nothing
        brings the main thread back from Python's own waiting.
    """
    over, claim = threading.Event(), threading.Lock()
    if _others() or _children():
        watch = threading.Thread(target=_watch, args=(limit, over, claim, give_up), name="sparkgap-exit", daemon=True)
        watch.start()
    threading._shutdown()  # type: ignore[attr-defined]
    for child in _children():
        child.join()
    over.set()
    claim.acquire()  # for ever, if `give_up` has begun


def finish() -> None:
    """The end of a script: as `await_others`, without a limit, then the exit handlers; `multiprocessing` ends its forked children in the same way."""
    await_others(None, lambda names: None)
    atexit._run_exitfuncs()


def leave(status: int) -> NoReturn:
    """End the process from whatever thread, with its exit handlers, which must not wait for children again, and all that it has printed."""
    for child in _children():
        child.kill()
    atexit._run_exitfuncs()
    exit_now(status)


def exit_now(status: int) -> NoReturn:
    """End the process with what it has printed and without its exit handlers."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # user code has closed it
            stream.flush()
    os._exit(status)


def _watch(limit: float | None, over: threading.Event, claim: threading.Lock, give_up: Callable[[str], None]) -> None:
    quiet = _QUIET_SECONDS if limit is None else min(_QUIET_SECONDS, limit)
    if over.wait(quiet):
        return
    if limit is None or limit > quiet:
        patience = "" if limit is None else f", for {limit:g} s at most (spark.sparkgap.threads.timeout)"
        say(f"sparkgap: the main thread has come to its end and waits for {_names()}{patience}\n")
        if over.wait(None if limit is None else limit - quiet):
            return
    names, stacks = _names(), "".join(_stacks())
    if claim.acquire(blocking=False):
        say(stacks)
        give_up(names)


def _others() -> list[threading.Thread]:
    mine = (threading.main_thread(), threading.current_thread())
    return [each for each in threading.enumerate() if not (each.daemon or each in mine)]


def _children() -> list[BaseProcess]:
    """Those of this very process: a fork has the list of its parent's."""
    children = multiprocessing.active_children()
    return [each for each in children if not each.daemon and each._parent_pid == os.getpid()]  # type: ignore[attr-defined]


def _names() -> str:
    frames = sys._current_frames()
    names = [f"thread {each.name!r}{_place(frames.get(each.ident or 0))}" for each in _others()]
    names += [f"process {each.name!r} ({each.pid})" for each in _children()]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _place(frame: FrameType | None) -> str:
    """Where it is in code that is not Python's own, if anywhere."""
    own = frame
    while (
        own is not None
        and own.f_code.co_filename.startswith(_LIBRARY)
        and "site-packages" not in own.f_code.co_filename
    ):
        own = own.f_back
    found = own or frame
    if found is None:
        return ""
    return f" ({os.path.basename(found.f_code.co_filename)}:{found.f_lineno} in {found.f_code.co_name})"


def _stacks() -> Iterator[str]:
    frames = sys._current_frames()
    for each in _others()[:_MOST_NAMES]:
        if (frame := frames.get(each.ident or 0)) is not None:
            yield f"thread {each.name!r} still runs:\n"
            yield from traceback.format_stack(frame)[-_STACK_LINES:]
