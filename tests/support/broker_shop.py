"""An app with two flows and a broker between them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from flowkit.engine.worker import Worker
from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings
from tests.support.shop import Base, Effect, Order, effects, new_app
from tests.support.waiting import wait_until


class Shop:
    """An app with two flows, its store, and as many workers as are started."""

    def __init__(self, database_url: str, broker_url: str, drain_url: str = "") -> None:
        store = open_store(Settings(database_url=database_url), check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self.app = new_app()
        self.orders = self.app.channel("orders", Order)
        self.accepted = self.app.channel("accepted", Order)
        self.app.flow(self.orders, to=self.accepted, name="accept")(self.accept)
        self.app.flow(self.accepted, name="invoice")(self.invoice)
        self.settings = Settings(database_url=database_url, broker_url=broker_url, drain_url=drain_url, lease=5)
        self.services = self.connect()
        self.store: Any = self.services.store
        self.app.connect(self.services)
        self.deed: Callable[[Order], None] = lambda order: None

    def connect(self) -> Services:
        return connect(self.settings)

    def accept(self, order: Order, db: Session) -> Order:
        self.deed(order)
        db.add(Effect(name=f"accept {order.name}"))
        return order

    def invoice(self, order: Order, db: Session) -> None:
        db.add(Effect(name=f"invoice {order.name}"))

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker on services of its own, as in a process of its own."""
        services = self.connect()
        worker = Worker(self.app, services)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(60)
            services.close()

    def publish(self, *names: str) -> None:
        self.app.publish_many(self.orders, [Order(name=name) for name in names])

    def ended(self) -> bool:
        """Whether every message is at its end."""
        return bool(self.store.ledger.unfinished(list(self.app.flows)) == 0)

    def check(self, *names: str) -> None:
        """Each of these took effect once, everything is accounted for, and nothing is left anywhere."""
        wait_until(self.ended)
        with Session(self.store.dialect.engine) as session:
            assert effects(session) == {f"{flow} {name}": 1 for flow in ("accept", "invoice") for name in names}
        wait_until(lambda: sum(self.store.ledger.pending(list(self.app.flows))) == 0)
        assert all(one.balanced for one in self.store.ledger.balances().values())
        wait_until(lambda: not any(self.services.transport.depths(list(self.app.flows)).values()))

    def close(self) -> None:
        self.app.close()  # those of the last worker, which the app was connected to
        self.services.close()


NAMES = [str(number) for number in range(500)]
