"""A copy of a store's database, at the broker of the first: whose messages take effect where."""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit import App, ConfigError
from flowkit.cli.schema import adopt
from flowkit.engine.worker import Worker
from flowkit.errors import BrokerUnavailable
from flowkit.services import SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.store.place import _same
from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.support.keys import ring
from tests.support.shop import Base, Effect, Order, effects, new_app
from tests.support.waiting import wait_until


def shop() -> App:
    app = new_app()

    @app.flow(app.channel("orders", Order))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    return app


@contextmanager
def running(url: str, broker_url: str) -> Iterator[tuple[App, Any]]:
    """A worker on a database, and its store."""
    app, services = shop(), connect(Settings(database_url=url, broker_url=broker_url))
    try:
        worker = Worker(app, services)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield app, services.store
        finally:
            worker.stop()
            thread.join(60)
    finally:
        services.close()


def test_a_copy_of_the_database_elsewhere_is_refused_until_it_is_adopted(
    postgresql: PostgreSQL, postgresql_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    id = store.identity()
    store.close()
    with closing(connect(Settings(database_url=postgresql_url, broker_url=rabbitmq_url))):
        """It is noted where the store is."""
    original = postgresql_url.rpartition("/")[2].partition("?")[0]
    copy_url = postgresql.create_database(f"{original}_copy", template=original)
    try:
        copy = Settings(database_url=copy_url, broker_url=rabbitmq_url)
        with pytest.raises(ConfigError, match=rf"names a copy: store {id} was in database.*flowkit db adopt --apart"):
            connect(copy)
        connect(Settings(database_url=copy_url, broker_url="")).close()  # without a broker nothing is shared
        monkeypatch.setenv("FLOWKIT_DATABASE_URL", copy_url)
        adopt(apart=False)
        assert capsys.readouterr().out == f"this database is store {id}\n"
        connect(copy).close()
        adopt(apart=True)
        assert id not in capsys.readouterr().out
        connect(copy).close()
        connect(Settings(database_url=postgresql_url, broker_url=rabbitmq_url)).close()
    finally:
        postgresql.drop_database(f"{original}_copy")


def test_a_copy_beside_live_workers_does_not_begin(
    tmp_path: Path, sqlite_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file, nothing but the workers at the broker tells it."""
    monkeypatch.setattr("flowkit.transports.rabbitmq.presence.LISTEN_SECONDS", 0.1)
    store = open_store(Settings(database_url=sqlite_url), check=False)
    Base.metadata.create_all(store.dialect.engine)
    id = store.identity()
    store.close()
    shutil.copy(sqlite_url.removeprefix("sqlite:///"), tmp_path / "copy.db")
    copy_url = f"sqlite:///{tmp_path}/copy.db"
    with running(sqlite_url, rabbitmq_url) as (app, store):
        wait_until(lambda: [one.state for one in store.ledger.workers()] == ["ready"])
        (first,) = store.fleet.members()
        refusal = rf"unknown to its database, such as worker {first} \(.*, process \d+\).*flowkit db adopt --apart"
        with pytest.raises(BrokerUnavailable, match=refusal), running(copy_url, rabbitmq_url):
            """It does not come so far."""
        app.publish_many("orders", [Order(name=str(number)) for number in range(100)])
        wait_until(lambda: store.ledger.unfinished(["shop.accept"]) == 0)
        with Session(store.dialect.engine) as session:
            assert effects(session) == {str(number): 1 for number in range(100)}
        with running(sqlite_url, rabbitmq_url):
            wait_until(lambda: [one.state for one in store.ledger.workers()] == ["ready"] * 2)
        copied = open_store(Settings(database_url=copy_url))
        assert copied.place.adopt(apart=True) != id
        copied.close()
        with running(copy_url, rabbitmq_url) as (_, copied):
            wait_until(lambda: [one.state for one in copied.ledger.workers()] == ["ready"])
            with pytest.raises(ConfigError, match=r"1 worker\(s\) of this database are alive"):
                copied.place.adopt(apart=True)


def test_a_worker_answers_on_each_connection_and_only_while_its_database_knows_it(
    rabbitmq_node: RabbitMQ, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flowkit.transports.rabbitmq.presence.LISTEN_SECONDS", 0.1)
    known = threading.Event()
    known.set()
    with Proxy("127.0.0.1", rabbitmq_node.port) as proxy:
        first, second = (
            RabbitTransport(url, "copied", SystemClock(), lambda: 0.1, keys=ring)
            for url in (rabbitmq_node.url(proxy.port), rabbitmq_url)
        )
        with closing(first), closing(second), caplog.at_level(logging.WARNING):
            assert first.others("a", known.is_set) == {}
            assert list(second.others("b", lambda: True)) == ["a"]
            assert list(first.others("a", known.is_set)) == ["b"]
            known.clear()
            assert second.others("b", lambda: True) == {}
            known.set()
            proxy.cut()
            wait_until(lambda: list(second.others("b", lambda: True)) == ["a"])
    assert "does not answer" not in caplog.text


@pytest.mark.parametrize(
    ("here", "was", "same"),
    [
        ("7/16384", "7/16384", True),
        ("7/16384", "7/16390", False),
        ("8/16384", "7/16384", False),
        ("unknown/16384", "7/16384", True),
        ("7/16390", "unknown/16384", False),
        ("", "", True),
    ],
)
def test_what_a_server_does_not_tell_is_not_compared(here: str, was: str, same: bool) -> None:
    assert _same(here, was) is same
