"""Fixtures for the tests of code that uses sparkgap; pytest loads them wherever this package is installed.

``sparkgap_server`` is one `LocalServer` for the whole test session, ``sparkgap_session`` a Spark Connect session of its own on it for each test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from sparkgap_server.local import LocalServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """Settings of the server, in the project's pytest configuration."""
    parser.addini("sparkgap_master", "Spark master of the sparkgap_server fixture", default="local[4]")
    parser.addini(
        "sparkgap_conf", "Spark settings of the sparkgap_server fixture, KEY=VALUE a line", type="linelist", default=[]
    )


@pytest.fixture(scope="session")
def sparkgap_server(pytestconfig: pytest.Config) -> Iterator[LocalServer]:
    """A Connect server with the extension, started once, some 5 s."""
    from sparkgap_server.local import LocalServer

    conf = dict(line.split("=", 1) for line in pytestconfig.getini("sparkgap_conf"))
    with LocalServer(pytestconfig.getini("sparkgap_master"), conf=conf) as server:
        yield server


@pytest.fixture
def sparkgap_session(sparkgap_server: LocalServer) -> Iterator[SparkSession]:
    """A fresh Connect session, stopped after the test."""
    from pyspark.sql import SparkSession

    session = SparkSession.builder.remote(sparkgap_server.url).create()
    yield session
    session.stop()
