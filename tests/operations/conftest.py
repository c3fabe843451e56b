"""Fixtures of the tests of what operators do."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.versions import Versions


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("rabbitmq", marks=[pytest.mark.postgresql, pytest.mark.rabbitmq]),
    ]
)
def versions(request: pytest.FixtureRequest) -> Iterator[Versions]:
    kind = request.param
    database = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgresql_url")
    broker = request.getfixturevalue("rabbitmq_url") if kind == "rabbitmq" else ""
    with contextlib.closing(Versions(database, broker)) as made:
        yield made
