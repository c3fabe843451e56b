"""All transports pass the kit."""

import time
from collections.abc import Iterator, Sequence

import pytest

from flowkit.errors import BrokerUnavailable
from flowkit.ports import Consumer, Delivery, Store, Transport
from flowkit.services import SystemClock
from flowkit.testing.conformance import Features, TransportConformance
from flowkit.transports.memory.transport import MemoryTransport
from flowkit.transports.rabbitmq.consumer import RabbitConsumer
from flowkit.transports.rabbitmq.link import answer
from flowkit.transports.rabbitmq.transport import RabbitTransport
from flowkit.transports.sql.transport import SqlTransport
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.support.conformance import OnPostgresql, OnSqlite, opened

pytestmark = pytest.mark.migrated


class SqlTransportConformance(TransportConformance):
    features = Features(rows=True)
    url: str

    def open(self) -> tuple[Store, Transport]:
        store = opened(self.url)
        return store, SqlTransport(store, 30)

    def lose_connection(self, transport: Transport) -> None:
        """Their leases end: what a dead worker's survivors see to."""
        with self.store.unit("") as unit:
            unit.write(  # type: ignore[attr-defined]
                "UPDATE flowkit_messages SET due = 0 WHERE worker IS NOT NULL", [()]
            )
            unit.commit()


class TestSqlTransportOnSqlite(OnSqlite, SqlTransportConformance):
    pass


@pytest.mark.postgresql
class TestSqlTransportOnPostgresql(OnPostgresql, SqlTransportConformance):
    pass


class TestMemoryTransport(OnSqlite, TransportConformance):
    features = Features(rows=False)

    def open(self) -> tuple[Store, Transport]:
        return opened(self.url), MemoryTransport(SystemClock())

    def lose_connection(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.disconnect()


@pytest.mark.rabbitmq
class TestRabbitTransport(OnSqlite, TransportConformance):
    """Through a proxy, which ends its connections."""

    features = Features(rows=False)

    @pytest.fixture(autouse=True)
    def _sqlite(self, sqlite_url: str, rabbitmq_node: RabbitMQ, rabbitmq_url: str) -> Iterator[None]:
        self.node = rabbitmq_node
        with Proxy("127.0.0.1", rabbitmq_node.port) as self.proxy:
            self.begin(sqlite_url)
            yield

    def open(self) -> tuple[Store, Transport]:
        store = opened(self.url)
        url = self.node.url(self.proxy.port)
        return store, RabbitTransport(url, store.identity(), SystemClock(), lambda: 0.01, keys=store.keyring.read)

    def lose_connection(self, transport: Transport) -> None:
        known, end = len(self.proxy.arrivals), time.monotonic() + 20
        self.proxy.cut()
        while len(self.proxy.arrivals) < known + 2 or not self.connected(transport):
            assert time.monotonic() < end
            time.sleep(0.01)

    def settle(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        """Acknowledgements are not answered: what comes after them is, when they arrived."""
        super().settle(consumer, deliveries)
        assert isinstance(consumer, RabbitConsumer)
        channel = consumer._channel
        if channel is not None:
            consumer._loop.run(answer(channel, lambda done: channel.basic_qos(prefetch_count=200, callback=done)))

    def connected(self, transport: Transport) -> bool:
        try:
            transport.wait(0, [])
        except BrokerUnavailable:
            return False
        return transport.ready
