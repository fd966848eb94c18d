"""The loop of nursery and keepers: a callback may change what is watched, and nobody is called for a file that is not his."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from sparkgap_server.nursery.loop import READ, WRITE, Loop


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three connections; something can be read from each first end."""
    with ExitStack() as cleanup:
        made = [socket.socketpair() for _ in range(3)]
        for ours, theirs in made:
            cleanup.callback(ours.close)
            cleanup.callback(theirs.close)
            theirs.send(b"x")
        yield made


def test_a_file_that_an_earlier_callback_lets_go_has_no_turn(pairs) -> None:
    loop, called = Loop(), []

    def callback(number: int, events: int) -> None:
        called.append(number)
        for other, (ours, _) in enumerate(pairs):
            if other != number:
                loop.forget(ours)

    for number, (ours, _) in enumerate(pairs):
        loop.watch(ours, READ, partial(callback, number))
    assert loop.turn(0)
    assert len(called) == 1


def test_another_file_under_the_same_number_does_not_take_over_the_turn() -> None:
    """Seen with 128 ranks: the number of a closed pipe came again as the pidfd of a rank that had just begun, which was then waited for."""
    loop, called = Loop(), []
    pipes = [os.pipe() for _ in range(2)]
    for _, writing in pipes:
        os.write(writing, b"x")

    def exchange(number: int, events: int) -> None:
        other = pipes[1 - number][0]
        loop.forget(other)
        os.close(other)
        quiet, _ = os.pipe()
        os.dup2(quiet, other)  # nothing can be read from it
        loop.watch(other, READ, lambda _: called.append("taken for another"))

    for number, (reading, _) in enumerate(pipes):
        loop.watch(reading, READ, partial(exchange, number))
    assert loop.turn(0)
    assert called == []


def test_a_hang_up_of_a_file_of_which_nothing_is_asked_does_not_wake_the_loop(pairs) -> None:
    loop = Loop()
    ours, theirs = pairs[0]
    loop.watch(ours, READ, lambda _: None)
    loop.watch(ours, 0, lambda _: None)
    theirs.close()
    assert not loop.turn(0)


def test_events_can_be_changed_by_an_earlier_callback_without_losing_the_turn(pairs) -> None:
    loop, called = Loop(), []
    callbacks = [partial(lambda number, events: (called.append((number, events)), ask_more()), each) for each in (0, 1)]

    def ask_more() -> None:
        for number in (0, 1):
            loop.watch(pairs[number][0], READ | WRITE, callbacks[number])

    for number in (0, 1):
        loop.watch(pairs[number][0], READ, callbacks[number])
    loop.turn(0)
    assert sorted(number for number, _ in called) == [0, 1]
