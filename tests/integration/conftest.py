"""Fixtures of the tests against a real server; the server itself comes from the project's own pytest plugin."""

from __future__ import annotations

import pytest


@pytest.fixture
def spark(sparkgap_session):
    """A fresh Connect session on the server that the whole test session shares."""
    return sparkgap_session
