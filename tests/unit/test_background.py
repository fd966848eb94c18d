"""Calls on threads of their own: what the caller sees, and that a Ctrl-C strikes the caller alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest
from sparkgap.background import Errand, stream


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


def test_an_interrupt_while_the_thread_starts_leaves_no_call_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Thread.start` waits for its thread, so that an interrupt may come out of it when the thread runs already."""
    start, called = threading.Thread.start, threading.Event()
    begun: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        begun.append(thread)
        raise KeyboardInterrupt

    def two() -> Iterator[int]:
        yield 1
        called.set()
        yield 2

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    hold = threading.Event()

    def first() -> Iterator[int]:
        hold.wait(10)
        yield from two()

    with pytest.raises(KeyboardInterrupt):
        next(stream(first))
    hold.set()
    begun[0].join(10)
    assert not called.is_set()


class TestErrand:
    def test_it_is_done_on_another_thread(self) -> None:
        threads: list[int] = []
        errand = Errand(lambda: threads.append(threading.get_ident()), 10)
        assert errand.wait()
        assert threads != [threading.get_ident()]

    def test_what_it_raises_is_kept(self) -> None:
        def failing() -> None:
            raise ArithmeticError("no")

        errand = Errand(failing, 10)
        assert errand.wait()
        assert isinstance(errand.error, ArithmeticError)

    def test_nobody_waits_longer_than_its_seconds(self) -> None:
        hold = threading.Event()
        errand = Errand(lambda: hold.wait(60) and None, 0.1)
        assert not errand.wait()
        hold.set()

    def test_the_end_of_the_process_waits_for_it(self) -> None:
        code = """
            import sys, time
            from sparkgap.background import Errand

            def work():
                started.append(1)
                time.sleep(0.5)
                print("done", flush=True)

            started = []
            Errand(work, 30)
            while not started:
                pass
            raise KeyboardInterrupt
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "done\n"
        assert done.returncode == -signal.SIGINT
