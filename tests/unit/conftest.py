"""Fixtures of the unit tests: a nursery of one's own, without a JVM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark import cloudpickle

sys.path.insert(0, str(Path(__file__).parent))
import nursery_client
from hypothesis import settings
from nursery_client import NurseryProcess, running_nursery

# No test asserts a time: other work on the machine may make any example slow.
settings.register_profile("sparkgap", deadline=None)
settings.load_profile("sparkgap")


@pytest.fixture(scope="module")
def nursery(request: pytest.FixtureRequest) -> Iterator[NurseryProcess]:
    """One nursery for the tests of a module; the module's functions are pickled by value, since ranks cannot import tests."""
    for module in (request.module, nursery_client):
        cloudpickle.register_pickle_by_value(module)
    with running_nursery() as process:
        yield process
