"""Fixtures of the tests of HTTP."""

from collections.abc import Iterator

import pytest

from tests.support.web_site import Site


@pytest.fixture
def site(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Site]:
    """A worker that serves what the test's module calls `shop`."""
    made = Site(sqlite_url, request.module.shop())
    yield made
    made.close()
