"""Fixtures of the tests against a real server; the server itself comes from the project's own pytest plugin."""

from __future__ import annotations

import time

import pytest


@pytest.fixture
def spark(sparkgap_session):
    """A fresh Connect session on the server that the whole test session shares."""
    return sparkgap_session


@pytest.fixture
def eventually():
    """`eventually(check, seconds, what)` returns the first true answer of `check`, or fails once the seconds are over."""

    def wait(check, seconds, what):
        deadline = time.monotonic() + seconds
        while not (answer := check()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.02)
        return answer

    return wait
