"""Fixtures of the tests against a real server; the server itself comes from the project's own pytest plugin."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from pyspark.sql import SparkSession


@pytest.fixture
def spark(sparkgap_session):
    """A fresh Connect session on the server that the whole test session shares."""
    return sparkgap_session


@pytest.fixture(scope="session")
def eventually():
    """`eventually(check, seconds, what)` returns the first true answer of `check`, or fails once the seconds are over."""

    def wait(check, seconds, what):
        deadline = time.monotonic() + seconds
        while not (answer := check()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.02)
        return answer

    return wait


@pytest.fixture(scope="module")
def predicting_session(sparkgap_server):
    """`predicting_session(direct)` opens a session for one way of prediction, which lasts as long as the module's tests."""
    with ExitStack() as cleanup:

        def open_session(direct):
            session = SparkSession.builder.remote(sparkgap_server.url).create()
            cleanup.callback(session.stop)
            session.conf.set("spark.sparkgap.predict.direct", "true" if direct else "false")
            return session

        yield open_session


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "workers"])
def either_way(predicting_session, request):
    """A session for each way of prediction: Spark keeps its Python workers by session."""
    return predicting_session(request.param)
