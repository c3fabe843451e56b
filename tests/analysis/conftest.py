"""Fixtures of the tests of the analysis of an app's source."""

import sys
from collections.abc import Iterator

import pytest

from tests.support.sources import loaded


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    while loaded:
        del sys.modules[loaded.pop()]
