"""Keeps Ctrl-C out of gRPC: channel.py runs its calls on threads of their own, and the caller's thread only waits for what they hand over.

A KeyboardInterrupt that strikes inside gRPC's Python code can leave one of the channel's locks held, and every later call of the process hangs.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_END = object()
_WAKE_SECONDS = 0.1


def stream(start: Callable[[], Iterator[T]]) -> Iterator[T]:
    """The items of an iterator that another thread makes and runs through; what it raises is raised here.

    A caller that stops early lets the thread end with the item that it is waiting for.
    """
    handed: SimpleQueue[Any] = SimpleQueue()
    abandoned = threading.Event()

    def work() -> None:
        try:
            for item in () if abandoned.is_set() else start():
                handed.put(item)
                if abandoned.is_set():
                    return
        except BaseException as error:
            handed.put(_Raised(error))
        else:
            handed.put(_END)

    try:
        threading.Thread(target=work, name="sparkgap-channel", daemon=True).start()
        while (item := _next(handed)) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        abandoned.set()


def _next(handed: SimpleQueue[Any]) -> Any:
    """The kernel may give a signal to any thread, and Python runs its handler when the main thread wakes: so it wakes now and then."""
    while True:
        try:
            return handed.get(timeout=_WAKE_SECONDS)
        except Empty:
            continue


class Errand:
    """Something that is begun at once and done even where a Ctrl-C ends its caller's wait: the end of the process waits for it as well.

    Parameters
    ----------
    work
        Called on a thread of its own.
    seconds
        How long anybody waits, from now on. The thread goes on after that, as long as the process does.
    """

    def __init__(self, work: Callable[[], None], seconds: float) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._deadline = time.monotonic() + seconds
        self._done = threading.Event()
        threading.Thread(target=self._do, name="sparkgap-errand", daemon=True).start()
        atexit.register(self.wait)

    def wait(self) -> bool:
        """Until it is done or its seconds are over; says whether it is done."""
        while not self._done.wait(_WAKE_SECONDS) and time.monotonic() < self._deadline:
            pass
        return self._done.is_set()

    def _do(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error
