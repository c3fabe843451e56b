"""Sends: what cannot arrive is refused, and what is sent again is accepted once."""

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit import (
    DefinitionError,
    OutcomeUnknown,
    RetryPolicy,
    TooLarge,
    Unrouted,
)
from flowkit.errors import Undecodable
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.support.hostile import harnessed
from tests.support.shop import Base, Effect, Order, new_app, once, running

COMMIT = b"COMMIT\0"
"""As the driver sends it; READ COMMITTED is not meant."""


def test_row_24_a_body_over_the_limit_is_refused_at_the_send() -> None:
    app = new_app()
    app.max_body = 100
    raw = app.channel("raw", bytes)
    app.flow(raw, name="take")(lambda body: None)
    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(raw, b"x" * 100)
        with pytest.raises(TooLarge, match=r"101 bytes to channel raw exceeds the limit of 100 bytes"):
            harness.publish(raw, b"x" * 101)
        harness.until_quiet()
        assert harness.balances()["shop.take"].applied == 1


def test_a_send_that_cannot_arrive_is_refused() -> None:
    with harnessed() as harness:
        app = harness.app
        with pytest.raises(DefinitionError, match="no channel nowhere; its channels are orders"):
            app.publish("nowhere", {})
        with pytest.raises(Unrouted, match="no flow subscribes to channel unheard"):
            app.publish(app.channel("unheard"), {})
        app.publish(app.channel("free", optional=True), {})
        with pytest.raises(DefinitionError, match=r"delay of 4d exceeds App\(max_delay='3d'\)"):
            app.publish("orders", Order(name="a"), delay="4d")
        for bad in ("", "a\nb", "x" * 300):
            with pytest.raises(Undecodable, match="id"):
                app.publish("orders", Order(name="a"), id=bad)
        with pytest.raises(Undecodable, match="header"):
            app.publish("orders", Order(name="a"), headers={"a": "b\r\nc"})
        with pytest.raises(Undecodable, match="headers are int; they must be a mapping"):
            app.publish("orders", Order(name="a"), headers=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("type", [str, Any])
def test_text_that_is_no_unicode_is_refused_by_its_channel(type: Any) -> None:
    with harnessed() as harness:
        texts = harness.app.channel("texts", type)
        with pytest.raises(TypeError, match=r"channel texts: str cannot be serialised: .*surrogates not allowed"):
            harness.publish(texts, "\ud800")


def test_a_header_whose_name_no_broker_takes_is_refused_at_the_send() -> None:
    """AMQP counts bytes, and names end at 255: accepted, it would wait for good."""
    with harnessed() as harness:
        harness.publish("orders", Order(name="a"), headers={"x" * 255: "v"})
        with pytest.raises(Undecodable, match=r"a header's name is 'üü.*at most 255 bytes"):
            harness.publish("orders", Order(name="b"), headers={"ü" * 128: "v"})


def test_a_refused_id_is_not_used_up() -> None:
    with harnessed() as harness:
        late = harness.app.channel("late", Order)
        with pytest.raises(Unrouted):
            harness.publish(late, Order(name="a"), id="order-1")
        harness.store.subscribers.add({"shop.accept": "late"})
        harness.publish(late, Order(name="a"), id="order-1")
        harness.until_quiet()
        once(harness, "a")


def test_many_messages_sent_again_under_their_ids_are_accepted_once() -> None:
    with harnessed() as harness:
        values = [Order(name=str(number)) for number in range(700)]
        ids = [f"order-{number}" for number in range(700)]
        assert harness.app.publish_many("orders", values[:600], ids[:600]) == 600
        assert harness.app.publish_many("orders", values, ids) == 700
        with pytest.raises(ValueError, match="shorter"):
            harness.app.publish_many("orders", values, ids[:3])
        harness.until_quiet()
        once(harness, *(one.name for one in values))


def test_an_unknown_outcome_carries_the_ids_to_send_again() -> None:
    assert OutcomeUnknown("a").id == "a"
    error = OutcomeUnknown("a", "b", "c")
    assert error.ids == ("a", "b", "c")
    assert "3 messages from a to c" in str(error)


def test_publishing_inside_a_handler_is_refused_by_name() -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def loud(order: Order) -> None:
        app.publish(orders, order)

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert "flow shop.loud published from inside its handler" in harness.dead()[0].error
        assert "outbox: Outbox" in harness.dead()[0].error


def test_callers_of_many_threads_share_commits_and_lose_nothing(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    store = open_store(Settings(database_url=database_url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    store.close()
    services = connect(Settings(database_url=database_url))
    app.connect(services)
    unheard = app.channel("unheard")
    refused: list[BaseException] = []

    def publish(thread: int) -> None:
        for number in range(25):
            app.publish(orders, Order(name=f"{thread}-{number}"), id=f"{thread}-{number}")
            app.publish(orders, Order(name=f"{thread}-{number}"), id=f"{thread}-{number}")
            try:
                app.publish(unheard, {})
            except Unrouted as error:
                refused.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    asyncio.run(app.publish_async(orders, Order(name="async")))
    assert len(refused) == 200, "a wrong message costs its own caller, and no neighbour"
    app.close()
    with running(app, database_url) as harness:
        harness.until_quiet()
        once(harness, "async", *(f"{thread}-{number}" for thread in range(8) for number in range(25)))


@pytest.mark.parametrize("arrives", [True, False])
def test_a_publisher_cut_during_its_commit_sends_again_and_is_accepted_once(
    postgresql: PostgreSQL, postgresql_url: str, arrives: bool
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    with Proxy("127.0.0.1", postgresql.port) as proxy:
        through = postgresql.url(postgresql_url.rsplit("/", 1)[1], port=proxy.port)
        app.connect(connect(Settings(database_url=through)))
        proxy.cut_when(COMMIT, forward=arrives)
        with pytest.raises(OutcomeUnknown, match="send again with id=") as unknown:
            app.publish(orders, Order(name="a"))
        assert store.ledger.pending(["shop.accept"]).now == int(arrives)
        store.close()
        # The first one's id was made for it; the caller sends again under it.
        app.publish(orders, Order(name="a"), id=unknown.value.id)
        app.close()
    with running(app, postgresql_url) as harness:
        harness.until_quiet()
        once(harness, "a")
        assert harness.balances()["shop.accept"].accepted == 1
