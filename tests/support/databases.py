"""Services and workers on a database that has the shop's tables."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy.orm import Session

from flowkit import App
from flowkit.engine.worker import Worker
from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings
from tests.services.postgresql import PostgreSQL
from tests.support.shop import Base, Effect, Order, effects


def prepared(url: str, **settings: Any) -> Services:
    """Services on a store that has its schema and the tables of the shop."""
    store = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    store.close()
    return connect(Settings(database_url=url, **settings))


@contextmanager
def working(app: App, services: Services) -> Iterator[Worker]:
    """A worker on threads."""
    worker = Worker(app, services)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()


def checked(url: str, flows: list[str], count: int) -> None:
    """Nothing lost, nothing twice, everything balanced."""
    store = open_store(Settings(database_url=url))
    with Session(store.dialect.engine) as session:
        found = effects(session)
    assert {name: times for name, times in found.items() if times != 1} == {}
    assert len(found) == count
    for flow, balance in store.ledger.balances().items():
        assert balance.balanced, f"{flow}: {balance}"
    assert store.ledger.pending(flows) == (0, 0)
    store.close()


def rows(server: PostgreSQL) -> int:
    """How many message rows a server has."""
    with psycopg.connect(server.url("row_32")) as connection:
        return int(connection.execute("SELECT count(*) FROM flowkit_messages").fetchall()[0][0])


def chain(app: App) -> Any:
    """Two flows, with an effect in each."""
    orders, accepted = app.channel("orders", Order), app.channel("accepted", Order)

    @app.flow(orders, to=accepted, concurrency=2)
    def accept(order: Order, db: Session) -> Order:
        db.add(Effect(name=f"accept {order.name}"))
        return order

    @app.flow(accepted)
    def invoice(order: Order, db: Session) -> None:
        db.add(Effect(name=f"invoice {order.name}"))

    return orders
