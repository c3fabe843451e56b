"""A flow that was renamed or removed from its app: it is told of, and a command ends it without losing a message."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pika import BasicProperties, BlockingConnection, ConnectionParameters
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import Session

from flowkit import App, ConfigError, Reject, RetryAfter
from flowkit.cli.describe import check
from flowkit.cli.direct import drain
from flowkit.cli.schema import upgrade
from flowkit.cli.status import audit, status
from flowkit.cli.subscriptions import move, remove, show_list
from flowkit.engine.worker import Worker
from flowkit.host import instance
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.testing import Harness
from flowkit.transports.rabbitmq.servers import servers
from tests.support.shop import Base, Effect, Order, effects, new_app

OLD, NEW = "shop.accept", "shop.book"
ORPHANED = f"orphaned: {OLD} is subscribed to orders, but "
INSTEAD = (
    "if it has another name now, keep the old one by @app.flow(…, name='accept'), or write: flowkit subscriptions move "
    "shop.accept shop.NAME; if it is gone, write: flowkit subscriptions remove shop.accept; if it is of another "
    "program whose app is named shop too, give one of the two apps another name"
)


def version(name: str, channel: str = "orders", **options: Any) -> App:
    """The shop, whose flow has this name; another flow of it stays the same."""
    app = new_app()
    orders = app.channel(channel, Order, **options)
    notes = app.channel("notes", Order)

    @app.flow(orders, name=name)
    def accept(order: Order, db: Session) -> None:
        if order.deed == "reject":
            raise Reject("told to")
        if order.deed == "later" and name == "accept":
            raise RetryAfter("1h")
        db.add(Effect(name=order.name))

    @app.flow(notes)
    def note(order: Order) -> None:
        pass

    return app


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that several versions and the commands use."""
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path}/subscriptions.db"
    else:
        found = request.getfixturevalue("postgresql_url")
        monkeypatch.setenv("FLOWKIT_DATABASE_URL", found)
        upgrade()
        Base.metadata.create_all(create_engine(found.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool))
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", found)
    return found


def publish(app: App, *orders: Order) -> None:
    """As a program of its own, that publishes and ends."""
    app.services()
    try:
        for order in orders:
            app.publish("orders", order, id=order.name)
    finally:
        app.close()


def age(url: str, seconds: float = 3600) -> None:
    """Let the programs that have run have started so much earlier."""
    services = connect(Settings(database_url=url))
    store: Any = services.store
    with store.transaction() as unit:
        marker = "%s" if store.dialect.name == "postgresql" else "?"
        unit.write(f"UPDATE flowkit_subscriptions SET seen = seen - {marker}", [(int(seconds * 1e6),)])
    services.close()


@pytest.fixture
def renamed(url: str, tmp_path: Path) -> str:
    """A store whose flow was renamed: one message is applied, one waits, one is retried later and one is dead. The app
    of the new name has started since, so that another message has a copy for each name."""
    with Harness(version("accept"), url) as harness:
        for order in (Order(name="done"), Order(name="later", deed="later"), Order(name="dead", deed="reject")):
            harness.publish("orders", order, id=order.name)
        harness.until_quiet()
        harness.publish("orders", Order(name="waits"), id="waits")
    age(url)
    publish(version("book"), Order(name="both"))
    (tmp_path / "shop.py").write_text(
        "from tests.operations.test_subscriptions import version\n\napp = version('book')\n"
    )
    return url


def said(command: Callable[..., Any], capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    command(*arguments)
    return capsys.readouterr().out


def test_a_flow_that_no_app_has_is_told_of(renamed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(check, capsys, str(tmp_path / "shop.py"))
    assert f"{ORPHANED}app shop has no such flow; 3 message(s) of it wait; {INSTEAD}" in told
    assert told.endswith("1 warnings\n")
    since = f"{ORPHANED}the program of app shop that started last has no such flow; 3 message(s) of it wait; {INSTEAD}"
    assert since in said(status, capsys, False)
    assert json.loads(said(status, capsys, True))["orphaned"] == [OLD]
    assert since in said(audit, capsys, False)
    assert json.loads(said(audit, capsys, True))["orphaned"] == [OLD]
    listed = {one["flow"]: one for one in json.loads(said(show_list, capsys, True))}
    assert [listed[OLD][key] for key in ("channel", "orphaned", "waiting", "dead")] == ["orders", True, 3, 1]
    assert [listed[NEW][key] for key in ("channel", "orphaned", "waiting", "dead")] == ["orders", False, 1, 0]
    assert "orphaned" in said(show_list, capsys, False)


def test_drain_ends_and_names_what_nobody_empties(renamed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Harness(version("book"), renamed) as harness:
        harness.until_quiet()
    assert drain(["shop"], "30s") == 1
    assert f"no app has {OLD} any more" in capsys.readouterr().out


def test_a_start_tells_of_it(renamed: str, caplog: pytest.LogCaptureFixture) -> None:
    app = version("book")
    services = connect(Settings(database_url=renamed))
    instance.check(app, services)
    app.close()
    assert f"{ORPHANED}app shop has no such flow; 3 message(s) of it wait; {INSTEAD}" in caplog.messages


def test_a_flow_is_renamed_with_all_it_has(renamed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(move, capsys, OLD, NEW) == (
        f"{OLD} is {NEW} now: 2 message(s) and 1 dead letter(s) moved; 1 of which it has its own copy, discarded\n"
    )
    with Harness(version("book"), renamed) as harness:
        harness.advance("2h")
        with harness.session() as session:
            assert effects(session) == {"done": 1, "later": 1, "waits": 1, "both": 1}
        (letter,) = harness.dead()
        assert (letter.flow, letter.message.id) == (NEW, "dead")
        harness.publish("orders", Order(name="done"), id="done")
        harness.until_quiet()
        assert harness.store.dead_letters.retry([letter.letter]) == 1
        harness.until_quiet()
        balance = harness.balances()[NEW]
        assert (balance.accepted, balance.applied, balance.dead, balance.discarded) == (6, 4, 1, 1)
        assert balance.balanced
        assert OLD not in harness.balances()
    assert OLD not in said(show_list, capsys, False)


def test_what_is_moved_before_the_new_app_starts_waits_for_it(url: str) -> None:
    publish(version("accept"), Order(name="a"))
    move(OLD, NEW)
    with Harness(version("book"), url) as harness:
        harness.until_quiet()
        with harness.session() as session:
            assert effects(session) == {"a": 1}
        assert harness.balances()[NEW].balanced


def test_a_flow_is_removed_and_what_waits_is_counted(renamed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"3 message\(s\) and 1 dead letter\(s\) of flow shop.accept are discarded; n"
    ):
        remove(OLD, False)
    assert said(remove, capsys, OLD, True) == f"{OLD}: removed; 4 message(s) discarded\n"
    assert OLD not in said(status, capsys, False)
    ledger = json.loads(said(audit, capsys, True))
    assert (ledger["balanced"], ledger["orphaned"]) == (True, [])
    assert [ledger["flows"][OLD][key] for key in ("accepted", "applied", "discarded")] == [5, 1, 4]
    publish(version("book"), Order(name="c"))
    assert json.loads(said(audit, capsys, True))["flows"][OLD]["accepted"] == 5


def test_what_workers_have_is_not_taken_from_them(url: str) -> None:
    with Harness(version("accept"), url) as harness:
        harness.publish("orders", Order(name="a"))
        with pytest.raises(ConfigError, match=r"flow shop\.accept is in use by the running workers of app shop"):
            remove(OLD, True)
        with pytest.raises(ConfigError, match="workers of app shop run, and may have messages of flow"):
            move(OLD, NEW)
        held = harness.store.queue.lease(OLD, 1, harness.worker.id, 30)
        age(url)
        publish(version("book"))
        with pytest.raises(ConfigError, match=f"flow shop.accept are in flight in worker {harness.worker.id}"):
            remove(OLD, True)
        harness.store.queue.release([(one.row or "", one.deliveries) for one in held])
        harness.until_quiet()
        with harness.session() as session:
            assert effects(session) == {"a": 1}


def test_a_move_that_cannot_be_is_refused(renamed: str) -> None:
    for flow, name, why in (
        (OLD, "book", "book is no new name for flow shop.accept; write the full one: APP.FLOW"),
        (OLD, OLD, "is no new name"),
        (OLD, "shop.note", "flow shop.accept receives from channel orders, and shop.note from notes"),
        ("shop.acept", NEW, "no flow shop.acept is in this store"),
    ):
        with pytest.raises(ConfigError, match=why):
            move(flow, name)


def publish_foreign(server: ConnectionParameters, exchange: str) -> None:
    """Publish an order as another program does."""
    with closing(BlockingConnection(server)) as connection:
        outside = connection.channel()
        outside.confirm_delivery()
        outside.basic_publish(exchange, "order", b'{"name": "foreign"}', BasicProperties(message_id="7"))


@pytest.mark.rabbitmq
@pytest.mark.parametrize("removed", [False, True])
def test_what_waits_at_the_broker_goes_along(
    sqlite_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    removed: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", rabbitmq_url)
    channel = f"orders-{time.time_ns()}"  # an exchange, which other tests must not meet
    app = version("accept", channel, shared=True, optional=True)
    services = connect()
    worker = Worker(app, services)
    queue = services.transport._queues.name(OLD)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="workers of app shop run"):
        move(OLD, NEW)
    if removed:  # while its old worker goes on
        age(sqlite_url)
        publish(version("book", channel, shared=True, optional=True))
        with pytest.raises(
            ConfigError, match=r"consumer\(s\) still receive from queue flowkit\..*\.shop\.accept; stop"
        ):
            remove(OLD, True)
        assert OLD in services.store.subscribers.channels(), "it goes on"
    for lane in worker.lanes:
        lane.consumer.close()
    app.publish(channel, Order(name="own"))
    while worker.relay.step():
        pass
    worker.relay.flush()
    (server, *_) = servers(rabbitmq_url)
    publish_foreign(server, channel)
    end = time.monotonic() + 30
    while services.transport.depths([OLD])[OLD] < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    worker.close()
    app.close()
    if removed:
        assert said(remove, capsys, OLD, True) == f"{OLD}: removed; 1 message(s) discarded\n"
    else:
        assert said(move, capsys, OLD, NEW).startswith(f"{OLD} is {NEW} now: 1 message(s) and 0 dead letter(s) moved")
    with closing(BlockingConnection(server)) as connection, pytest.raises(Exception, match="NOT_FOUND"):
        connection.channel().queue_declare(queue, passive=True)
    monkeypatch.delenv("FLOWKIT_BROKER_URL")
    with Harness(version("book", channel, shared=True, optional=True), sqlite_url) as harness:
        harness.advance("1m")
        with harness.session() as session:
            assert effects(session) == ({"own": 1} if removed else {"own": 1, "foreign": 1})
        for flow, balance in harness.balances().items():
            assert balance.balanced, f"{flow}: {balance}"
