"""Fixtures: private servers, and a fresh database for each test."""

import itertools
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import psycopg
import pytest

from flowkit.services import open_store
from flowkit.settings import Settings
from tests.services import rabbitmq
from tests.services.postgresql import PostgreSQL, find_binaries
from tests.services.rabbitmq import RabbitMQ

CI = bool(os.environ.get("CI"))
PROOF = bool(os.environ.get("FLOWKIT_PROOF"))
"""Whether rows are shown with the full numbers of the proof, which takes longer."""

# No deadlines: a busy machine is no bug. In CI the same examples each time.
hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if CI else "home")

COSTLY = {"nodes", "managed"}
"""Fixtures that start RabbitMQ for the tests of one module: a cluster, and a node with its management API."""

_numbers = itertools.count(1)


def _campaign_seconds(item: pytest.Item) -> float:
    """How long a campaign may take at most; 0 for every other test."""
    limit = item.get_closest_marker("timeout")
    return float(limit.args[0]) if limit and item.get_closest_marker("campaign") else 0.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the server, so that -m 'not postgresql' leaves nothing out. Group the tests of a costly server, so
    that one process starts it once. What takes minutes comes first, and first of all what may take the longest."""
    items.sort(key=_campaign_seconds, reverse=True)
    for item in items:
        for fixture in COSTLY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(fixture))
        if "postgresql" in getattr(item, "fixturenames", ()):
            item.add_marker("postgresql")
        if "rabbitmq_node" in getattr(item, "fixturenames", ()):
            item.add_marker("rabbitmq")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The PostgreSQL server of this test run."""
    if find_binaries() is None:
        missing = "PostgreSQL is not installed: run tests/services/install"
        if CI:
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def rabbitmq_node() -> Iterator[RabbitMQ]:
    """The RabbitMQ node of this test run."""
    if rabbitmq.find_binaries() is None:
        missing = "RabbitMQ is not installed: run tests/services/install"
        if CI:
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    node = RabbitMQ()
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture
def rabbitmq_url(rabbitmq_node: RabbitMQ) -> str:
    """A broker, whatever the test before did to it. Queues are named by their store, so that tests do not meet."""
    rabbitmq_node.start()
    return rabbitmq_node.url()


@pytest.fixture(scope="session")
def migrated(postgresql: PostgreSQL) -> str:
    """The name of a database with FlowKit's tables: a copy of it is there sooner than the migrations make another. Its
    tables are empty, so that each copy gets an id and a key of its own from `upgrade`."""
    name = "migrated"
    with closing(open_store(Settings(database_url=postgresql.create_database(name)), check=False)) as store:
        store.schema.upgrade()
    with psycopg.connect(postgresql.url(name)) as connection:
        connection.execute("DELETE FROM flowkit_meta")
        connection.execute("DELETE FROM flowkit_keys")
    return name


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest, postgresql: PostgreSQL) -> Iterator[str]:
    """A fresh database on PostgreSQL, whatever the test before did to the server. It is empty, or a copy of `migrated`
    for tests with that mark."""
    postgresql.resume()
    postgresql.start()
    name, is_migrated = f"test_{next(_numbers)}", request.node.get_closest_marker("migrated")
    yield postgresql.create_database(name, request.getfixturevalue("migrated") if is_migrated else "template1")
    postgresql.resume()
    postgresql.start()
    postgresql.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh database on SQLite."""
    return f"sqlite:///{tmp_path}/flowkit.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database: the test runs on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
