"""Fixtures of the tests of the transports."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.support.broker_shop import Shop
from tests.support.shared_site import Site, Supplier


@pytest.fixture
def proxy(rabbitmq_node: RabbitMQ, rabbitmq_url: str) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", rabbitmq_node.port) as made:
        yield made


@pytest.fixture
def shop(sqlite_url: str, rabbitmq_node: RabbitMQ, proxy: Proxy) -> Iterator[Shop]:
    made = Shop(sqlite_url, rabbitmq_node.url(proxy.port))
    yield made
    made.close()


@pytest.fixture
def supplier(rabbitmq_url: str) -> Iterator[Supplier]:
    with closing(Supplier(rabbitmq_url)) as made:
        yield made


@pytest.fixture
def channel() -> str:
    return f"orders-{uuid4()}"


@pytest.fixture
def site(tmp_path: Path, rabbitmq_url: str, channel: str) -> Iterator[Site]:
    with closing(Site("shop", channel, tmp_path, rabbitmq_url)) as made:
        yield made
