"""Calls on threads of their own: what the caller sees, and that a Ctrl-C strikes the caller alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from sparkgap.background import stream


def test_items_arrive_in_order_from_another_thread() -> None:
    def threads() -> Iterator[int]:
        for _ in range(3):
            yield threading.get_ident()

    found = list(stream(threads))
    assert len(found) == 3
    assert threading.get_ident() not in found


def test_what_the_iterator_raises_is_raised_after_its_items() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ArithmeticError("no second")

    items = stream(failing)
    assert next(items) == 1
    with pytest.raises(ArithmeticError, match="no second"):
        next(items)


def test_a_caller_that_stops_early_closes_the_iterator() -> None:
    closed = threading.Event()
    second = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield 1
            second.wait(10)
            yield 2
            raise AssertionError("nobody asked for a third")
        finally:
            closed.set()

    items = stream(endless)
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    second.set()
    assert closed.wait(10)


def test_ctrl_c_interrupts_the_caller_and_not_the_call() -> None:
    asked = threading.Event()
    done = threading.Event()

    def waiting() -> Iterator[int]:
        signal.raise_signal(signal.SIGINT)  # lands in this process; Python handles it in the main thread
        asked.wait(10)
        done.set()
        yield 1

    with pytest.raises(KeyboardInterrupt):
        next(stream(waiting))
    asked.set()
    assert done.wait(10)
