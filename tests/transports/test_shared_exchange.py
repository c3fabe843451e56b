"""The exchange of a shared channel: it is parked for, refused, deleted and made again."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker, UnroutableError
from sqlalchemy.orm import Session

from flowkit import App, ConfigError, Message, RetryPolicy
from flowkit.engine.worker import Worker
from flowkit.ports import EXCHANGE, Dead, Done, Duplicate, Retried
from flowkit.testing import Harness
from flowkit.transports.rabbitmq.queues import Queues
from tests.support.shared_site import Site, Supplier
from tests.support.shop import FAST, Effect, Order, new_app, running
from tests.support.waiting import wait_until


def test_what_nobody_receives_is_parked_until_somebody_does(
    tmp_path: Path, rabbitmq_url: str, channel: str, supplier: Supplier
) -> None:
    with closing(Site("shop", f"in-{channel}", tmp_path, rabbitmq_url)) as site:
        out = site.app.channel(channel, Order, shared=True)
        lost = site.app.channel(f"optional-{channel}", Order, shared=True, optional=True)
        site.app.connect(site.services)

        def parked(name: str) -> int:
            backlog = site.store.ledger.backlog().get(EXCHANGE + name)
            return backlog.parked if backlog else 0

        with site.worker():
            id = site.app.publish(out, Order(name="a"))
            site.app.publish(lost, Order(name="b"))
            wait_until(lambda: parked(channel) == 1)
            wait_until(lambda: sum(site.store.ledger.pending([EXCHANGE + lost.name])) == 0)
            queue = supplier.subscribe(channel)
        with site.worker():  # a start makes it due at once
            properties, _ = supplier.get(queue)
            assert properties.message_id == id
            wait_until(lambda: sum(site.store.ledger.pending([EXCHANGE + channel])) == 0)


def test_without_a_broker_what_is_for_others_waits(
    tmp_path: Path, rabbitmq_url: str, channel: str, supplier: Supplier, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Site("shop", channel, tmp_path, "")) as direct, direct.worker():
        id = direct.app.publish(direct.orders, Order(name="a"))
        wait_until(lambda: direct.effects() == {"a": 1})
        assert direct.store.ledger.pending([EXCHANGE + channel]).now == 1
        assert all(one.balanced for one in direct.store.ledger.balances().values())
    assert any("until FLOWKIT_BROKER_URL is set" in record.message for record in caplog.records)
    with closing(Site("shop", channel, tmp_path, rabbitmq_url)) as site:
        supplier.channel.exchange_declare(channel, "topic", durable=True)
        queue = supplier.subscribe(channel)
        with site.worker():
            assert supplier.get(queue)[0].message_id == id
            site.rest()
        assert site.effects() == {"a": 1}


def test_an_exchange_of_another_kind_is_refused_by_name(
    tmp_path: Path, rabbitmq_url: str, channel: str, supplier: Supplier
) -> None:
    supplier.channel.exchange_declare(channel, "fanout", durable=True)
    for name in (channel, "amq.orders"):
        refusal = rf"FLOWKIT_BROKER_URL.*exchange {name} of the shared channel"
        with closing(Site("shop", name, tmp_path, rabbitmq_url)) as site, pytest.raises(ConfigError, match=refusal):
            Worker(site.app, site.services)


def test_an_exchange_that_is_refused_parks_its_own_messages_only(
    tmp_path: Path, rabbitmq_url: str, channel: str, supplier: Supplier
) -> None:
    supplier.channel.exchange_declare(channel, "fanout", durable=True)
    with closing(Site("shop", f"in-{channel}", tmp_path, rabbitmq_url)) as site:
        site.app.channel(channel, Order, shared=True)
        site.app.connect(site.services)
        with site.worker():
            site.app.publish(channel, Order(name="a"))
            site.app.publish(site.orders, Order(name="b"))
            wait_until(lambda: site.effects() == {"b": 1})
            wait_until(lambda: site.store.ledger.backlog()[EXCHANGE + channel].parked == 1)


def test_an_exchange_that_is_deleted_is_made_again(site: Site, supplier: Supplier, channel: str) -> None:
    with site.worker():
        site.app.publish(site.orders, Order(name="a"))
        wait_until(lambda: site.effects() == {"a": 1})
        supplier.channel.exchange_delete(channel)
        # The publish that finds no exchange costs the channel; what it carried is sent again.
        site.app.publish(site.orders, Order(name="b"))
        wait_until(lambda: site.effects() == {"a": 1, "b": 1})
        wait_until(lambda: _there(supplier, channel))


def _there(supplier: Supplier, exchange: str) -> bool:
    try:
        supplier.channel.exchange_declare(exchange, "topic", passive=True)
    except ChannelClosedByBroker:
        supplier.channel = supplier.connection.channel()
        return False
    return True


# ------------------------------------------------------------ in memory


def foreign(name: str, deed: str = "", id: str = "") -> Message:
    return Message(id, "erp", "", Order(name=name, deed=deed).model_dump_json().encode())


def shared_app(retry: RetryPolicy = FAST, **options: Any) -> App:
    app = new_app()
    orders, later = app.channel("orders", Order, shared=True), app.channel("later", Order)

    @app.flow(orders, to=later, retry=retry, **options)
    def accept(order: Order, db: Session) -> Order:
        if order.deed == "fail":
            raise ValueError("no such order")
        db.add(Effect(name=order.name))
        return order

    @app.flow(later)
    def end(order: Order) -> None:
        pass

    return app


def remove(supplier: Supplier, site: Site, gone: str) -> None:
    """Take the exchange away, or the binding of the flow's queue."""
    if gone == "exchange":
        supplier.channel.exchange_delete(site.orders.name)
    else:
        queue = Queues(site.store.identity()).name("shop.accept")
        supplier.channel.queue_unbind(queue, site.orders.name, "#")


@pytest.mark.parametrize("gone", ["exchange", "binding"])
def test_an_exchange_or_binding_that_vanishes_while_a_worker_runs_is_there_again(
    site: Site,
    supplier: Supplier,
    channel: str,
    gone: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody but other programs sends there, so nothing is returned: a look finds it."""
    monkeypatch.setattr("flowkit.transports.rabbitmq.exchanges.LOOK_SECONDS", 0.1)
    with site.worker():
        supplier.send(channel, b'{"name": "a"}', message_id="1")
        wait_until(lambda: site.effects() == {"a": 1})
        remove(supplier, site, gone)
        supplier.channel.confirm_delivery()
        later = BasicProperties(message_id="2")

        def taken() -> bool:
            try:
                supplier.channel.basic_publish(channel, "order", b'{"name": "b"}', later, mandatory=True)
            except UnroutableError:
                return False
            except ChannelClosedByBroker:
                supplier.channel = supplier.connection.channel()
                supplier.channel.confirm_delivery()
                return False
            return True

        wait_until(taken)
        wait_until(lambda: site.effects() == {"a": 1, "b": 1})
        site.rest()
    told = f"shop.accept: the exchange {channel} of its shared channel was removed" in caplog.text
    assert told == (gone == "exchange"), "AMQP does not tell of a binding"


def test_a_binding_that_vanishes_is_told_when_a_message_comes_back(
    site: Site, supplier: Supplier, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    with site.worker():
        site.app.publish(site.orders, Order(name="a"))
        site.rest()
        remove(supplier, site, "binding")
        site.app.publish(site.orders, Order(name="b"))
        wait_until(lambda: f"shop.accept: its queue was not bound to the exchange {channel} any more" in caplog.text)
        site.rest()
        assert site.effects() == {"a": 1, "b": 1}


def test_a_foreign_message_is_accepted_once_whatever_becomes_of_it(database_url: str) -> None:
    with running(shared_app(), database_url, broker=True) as harness:
        for message in (foreign("a", id="1"), foreign("b", "fail", id="2"), foreign("c"), foreign("d", "fail")):
            harness.broker.deliver("shop.accept", message)
        harness.broker.deliver("shop.accept", Message("3", "erp", "", b"no JSON"))
        harness.broker.deliver("shop.accept", Message("", "", "", b"\xff", headers={"bad\n": "name"}))
        harness.broker.duplicate("shop.accept")
        harness.until_quiet()
        for _ in range(4):
            harness.advance("1m")
        balance = harness.balances()["shop.accept"]
        # Those without an id are two each: the broker's duplicates cannot be known for what they are.
        assert (balance.accepted, balance.applied, balance.dead, balance.unidentified) == (8, 3, 5, 4)
        assert harness.broker.shared == []
        kinds = [type(outcome) for _, _, outcome in harness.outcomes if _ is not None]
        assert {Done, Retried, Dead, Duplicate} == set(kinds)


def test_a_message_to_a_shared_channel_goes_to_its_flows_and_to_the_exchange() -> None:
    with running(shared_app(), "sqlite:///:memory:", broker=True) as harness:
        id = harness.publish("orders", Order(name="a"))
        harness.until_quiet()
        assert [(message.id, message.headers) for message in harness.broker.shared] == [
            (id, {"content-type": "application/json"})
        ]
        assert harness.balances()["shop.accept"].applied == 1


def test_a_channel_may_have_receivers_outside_only() -> None:
    app = new_app()
    orders, out = app.channel("orders", Order), app.channel("out", Order, shared=True)
    app.flow(orders, to=out, name="pass")(lambda order: order)
    with Harness(app, broker=True) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert [message.channel for message in harness.broker.shared] == ["out"]
