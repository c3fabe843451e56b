"""An app at a shared channel, and a program that knows nothing of FlowKit."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from pika import BasicProperties, BlockingConnection
from sqlalchemy.orm import Session

from flowkit import Message
from flowkit.engine.worker import Worker
from flowkit.ports import EXCHANGE, Outcome
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.servers import servers
from tests.support.shop import FAST, Base, Effect, Order, effects, new_app
from tests.support.waiting import wait_until

DEADLINE_SECONDS = 90.0


class Supplier:
    """A program that knows nothing of FlowKit."""

    def __init__(self, url: str) -> None:
        (server, *_) = servers(url)
        self.connection = BlockingConnection(server)
        self.channel = self.connection.channel()

    def send(self, exchange: str, body: bytes, **properties: Any) -> None:
        self.channel.basic_publish(exchange, "order", body, BasicProperties(**properties))

    def subscribe(self, exchange: str, key: str = "#") -> str:
        name = f"supplier-{uuid4()}"
        self.channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
        self.channel.queue_bind(name, exchange, key)
        return name

    def get(self, queue: str) -> tuple[BasicProperties, bytes]:
        """The next message of a queue, waited for."""
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            _, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if properties is not None and body is not None:
                return properties, body
            assert time.monotonic() < end, "nothing came"
            time.sleep(0.02)

    def close(self) -> None:
        self.connection.close()


class Site:
    """An app on a store of its own, with one flow at a shared channel."""

    def __init__(self, name: str, channel: str, path: Path, broker_url: str, **options: Any) -> None:
        url = f"sqlite:///{path / name}.db"
        store = open_store(Settings(database_url=url), check=False)
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self.app = new_app(name)
        self.orders = self.app.channel(channel, Order, shared=True)
        self.seen: list[Message] = []
        self.app.flow(self.orders, name="accept", retry=FAST, **options)(self.accept)
        self.settings = Settings(database_url=url, broker_url=broker_url, lease=5)
        self.services = connect(self.settings)
        self.store: Any = self.services.store
        self.app.connect(self.services)
        self.outcomes: list[Outcome | None] = []

    def accept(self, order: Order, message: Message, db: Session) -> None:
        self.seen.append(message)
        if order.deed == "fail":
            raise ValueError("no such order")
        db.add(Effect(name=order.name))

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        services = connect(self.settings)
        worker = Worker(self.app, services)
        for lane in worker.lanes:
            lane.pipeline.observe = lambda items: self.outcomes.extend(item.outcome for item in items)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(60)
            services.close()

    def effects(self) -> dict[str, int]:
        with Session(self.store.dialect.engine) as session:
            return effects(session)

    def rest(self) -> None:
        """Wait until all is at its end, here and on its way to others; the ledger must balance."""
        flows = [*self.app.flows, EXCHANGE + self.orders.name]
        wait_until(
            lambda: (
                sum(self.store.ledger.pending(flows)) == 0 and self.store.ledger.unfinished(list(self.app.flows)) == 0
            )
        )
        wait_until(lambda: not any(self.services.transport.depths(list(self.app.flows)).values()))
        assert all(one.balanced for one in self.store.ledger.balances().values())

    def close(self) -> None:
        self.app.close()
