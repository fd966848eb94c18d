"""The work of a model host's main thread, which runs all user code: piece by piece, in the order in which the other threads put it here.

pyspark loads and predicts in the main thread of a worker, and user code counts on it: torch's grad mode and default device, numpy's error state,
signal handlers, event loops and sqlite's connections belong to the thread that made them.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Value = TypeVar("Value")


class Turns:
    """`put` and `ask` are for other threads, `take` is for the main thread alone."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def put(self, work: Callable[[], None]) -> None:
        """Have the main thread do this when its turn comes; an exception in it ends the host."""
        self._waiting.put(work)

    def ask(self, question: Callable[[], Value]) -> Value:
        """What the main thread got or raised when the question's turn came."""
        answer: Future[Value] = Future()

        def work() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        self._waiting.put(work)
        return answer.result()

    def take(self, seconds: float) -> None:
        """Do the next piece of work; waits at most so long for it."""
        try:
            work = self._waiting.get(timeout=seconds)
        except queue.Empty:
            return
        work()
