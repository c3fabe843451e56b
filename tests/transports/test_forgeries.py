"""Forged, copied and changed messages at the broker take no effect."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker

from flowkit import App
from flowkit.cli.subscriptions import move
from flowkit.engine.worker import Worker
from flowkit.errors import DefinitionError, FlowKitError, StoreUnavailable
from flowkit.message import Message, new_id
from flowkit.ports import EXCHANGE, REFUSED, Copy, Ring, Shared
from flowkit.services import SystemClock, connect
from flowkit.store import keyring
from flowkit.transports.rabbitmq import signature
from flowkit.transports.rabbitmq.envelope import properties
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.support.keys import HEADERS, ring, signatures
from tests.support.shared_site import Site, Supplier
from tests.support.shop import Order, new_app
from tests.support.waiting import wait_until

# ------------------------------------------------------------ the broker


@pytest.fixture
def site(tmp_path: Path, rabbitmq_url: str) -> Iterator[Site]:
    with closing(Site("shop", f"orders-{time.time_ns()}", tmp_path, rabbitmq_url)) as made:
        yield made


@pytest.fixture
def attacker(rabbitmq_url: str) -> Iterator[Supplier]:
    with closing(Supplier(rabbitmq_url)) as made:
        yield made


def address(site: Site, flow: str = "shop.accept") -> str:
    return Queues(site.store.identity()).name(flow)


def put(attacker: Supplier, queue: str, headers: dict[str, Any], body: bytes) -> None:
    attacker.channel.basic_publish("", queue, body, BasicProperties(message_id="x", headers=headers), mandatory=True)


def taken(site: Site, attacker: Supplier, name: str) -> tuple[str, dict[str, Any], bytes]:
    """Publish a message, and take it from the queue of the flow: its id, its headers and its body."""
    worker = Worker(site.app, connect(site.settings))
    for lane in worker.lanes:
        lane.consumer.close()
    id = site.app.publish(site.orders, Order(name=name), headers=HEADERS)
    while worker.relay.step():
        pass
    worker.relay.flush()
    came = [attacker.get(address(site)) for _ in range(2)]  # the copy, and the event that the exchange gave back
    found, body = next(one for one in came if "flowkit-mac" in (one[0].headers or {}))
    worker.close()
    worker.services.close()
    headers: dict[str, Any] = dict(found.headers or {})
    headers.pop("x-delivery-count", None)
    return id, headers, body


def generation(headers: dict[str, Any]) -> dict[str, Any]:
    envelope = json.loads(headers["flowkit"])
    envelope[1] = 1000
    return {"flowkit": json.dumps(envelope, separators=(",", ":"))}


FORGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "unsigned": lambda headers: {"flowkit-mac": None},
    "of a later generation": generation,
    "another header": lambda headers: {"tenant": "red"},
    "another key": lambda headers: {"flowkit-mac": signatures().sign("queue", headers["flowkit"], HEADERS, b"")},
}


def refused(site: Site) -> int:
    letters = list(site.store.dead_letters.read(site.store.dead_letters.select()))
    assert {letter.reason for letter in letters} <= {REFUSED}, [tuple(letter) for letter in letters]
    return len(letters)


@pytest.mark.rabbitmq
def test_nobody_else_makes_or_changes_a_message_of_ours(site: Site, attacker: Supplier) -> None:
    id, headers, body = taken(site, attacker, "a")
    forged = [{**headers, **change(headers)} for change in FORGED.values()]
    with site.worker():
        for one in forged:
            put(attacker, address(site), one, body)
        put(attacker, address(site), headers, b'{"name": "b"}')
        put(attacker, address(site), headers, b"no JSON")
        wait_until(lambda: refused(site) == 3)  # one of each body that claims to be the same message
        assert site.seen == []
        assert id, "none of them took its identity"
        put(attacker, address(site), headers, body)
        wait_until(lambda: site.effects() == {"a": 1})
        put(attacker, address(site), headers, body)  # once more
        put(attacker, address(site), forged[1], body)
        site.rest()
    assert site.effects() == {"a": 1}
    assert [(one.id, one.source, dict(one.headers)["tenant"]) for one in site.seen] == [(id, "shop", "blue")]


@pytest.mark.rabbitmq
def test_no_other_program_takes_an_id_of_another_app_of_the_store(site: Site, attacker: Supplier) -> None:
    """Also of one that only publishes."""
    site.store.subscribers.add({"billing.accept": "bills"})
    invoicing = App("invoicing")
    orders = invoicing.channel(site.orders.name, Order, optional=True)
    invoicing.connect(site.services)
    with site.worker():
        put(attacker, address(site), {"ce-id": "1", "ce-source": "billing"}, b'{"name": "a"}')
        put(attacker, address(site), {"ce-id": "1", "ce-source": "invoicing"}, b'{"name": "b"}')
        wait_until(lambda: site.effects() == {"a": 1, "b": 1})
        invoicing.publish(orders, Order(name="c"), id="1")
        wait_until(lambda: site.effects() == {"a": 1, "b": 1, "c": 1})
    assert {(one.id, one.source) for one in site.seen} == {
        ("1", "foreign:billing"),
        ("1", "foreign:invoicing"),
        ("1", "invoicing"),
    }


@pytest.mark.rabbitmq
def test_other_programs_put_nothing_into_the_queue_of_a_channel_of_our_own(site: Site, attacker: Supplier) -> None:
    ran: list[str] = []
    bills = site.app.channel("bills", Order)
    site.app.flow(bills, name="bill")(lambda order: ran.append(order.name))
    with site.worker():
        put(attacker, address(site, "shop.bill"), {"ce-id": "1", "ce-source": "erp"}, b'{"name": "a"}')
        wait_until(lambda: refused(site) == 1)
        site.app.publish(bills, Order(name="b"))
        wait_until(lambda: ran == ["b"])
    (letter,) = site.store.dead_letters.read(site.store.dead_letters.select())
    assert "straight into the queue of a flow whose channel is for this app alone" in letter.error


@pytest.mark.rabbitmq
def test_what_strangers_put_into_a_queue_of_our_own_stays_refused_when_its_flow_is_renamed(
    site: Site, attacker: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    bills = site.app.channel("bills", Order)
    site.app.flow(bills, name="bill")(lambda order: None)
    with site.worker():
        pass
    put(attacker, address(site, "shop.bill"), {"ce-id": "1", "ce-source": "erp"}, b'{"name": "a"}')
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", site.settings.database_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", site.settings.broker_url)
    wait_until(lambda: site.services.transport.depths(["shop.bill"])["shop.bill"] == 1)
    move("shop.bill", "shop.invoice")
    assert site.store.queue.due() == set(), "no handler runs for it"
    assert refused(site) == 1


@pytest.mark.rabbitmq
def test_only_the_broker_says_how_often_a_message_was_handed_out(site: Site, attacker: Supplier) -> None:
    """Else whoever may publish lets every message run alone, as one that has killed its process."""
    transport: Any = site.services.transport
    transport.declare(["shop.accept"], [Shared(site.orders.name, ["shop.accept"], False)])
    consumer = transport.consumer("shop.accept", "worker", 10)
    attacker.send(site.orders.name, b"", headers={"x-delivery-count": 1000})
    for handed_out in (1, 2):
        wait_until(lambda: consumer.stocked)
        (one,) = consumer.receive(10)
        assert one.deliveries == handed_out
        consumer.release([one])
    consumer.close()


@pytest.mark.rabbitmq
def test_what_is_in_hand_goes_back_when_the_keys_cannot_be_read(
    rabbitmq_url: str, attacker: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the broker waits for it for good, and sends nothing more to this flow after a few of such times."""
    monkeypatch.setattr(signature, "AGAIN_SECONDS", 0.0)
    away: list[FlowKitError] = []

    def keys() -> Ring:
        if away:
            raise away[0]
        return ring()

    flow, exchange = "shop.accept", f"orders-{time.time_ns()}"
    with closing(RabbitTransport(rabbitmq_url, new_id(), SystemClock(), lambda: 0.0, keys=keys)) as transport:
        transport.declare([flow], [Shared(exchange, [flow], False)])
        consumer = transport.consumer(flow, "worker", 10)
        (sent,) = transport.send([Copy("1", Message("1", "shop", exchange, b""), EXCHANGE + exchange)])
        assert sent.confirmed
        copy = properties(Copy("2", Message("2", "shop", exchange, b""), flow), 1.0, "other", signatures())
        unknown = {**dict(copy.headers or {}), "flowkit-mac": '["unknown", "", []]'}
        put(attacker, transport._queues.name(flow), unknown, b"")
        wait_until(lambda: len(consumer._buffer) == 2)
        away.append(StoreUnavailable("the database is away"))
        with pytest.raises(StoreUnavailable):
            consumer.receive(10)
        away.clear()
        wait_until(lambda: len(consumer._buffer) == 2)
        came = consumer.receive(10)
        assert [one.message.id for one in came] == ["2"]
        consumer.settle(came)
        wait_until(lambda: not consumer._unsettled, 10)


@pytest.mark.rabbitmq
def test_a_true_copy_counts_in_its_own_queue_only(site: Site, attacker: Supplier, tmp_path: Path) -> None:
    """Here a message for the queue of another store."""
    _, headers, body = taken(site, attacker, "a")
    url = site.settings.broker_url
    with closing(Site("billing", f"bills-{time.time_ns()}", tmp_path, url)) as other, other.worker():
        put(attacker, address(other, "billing.accept"), headers, body)
        wait_until(lambda: refused(other) == 1)
        assert other.seen == []
        other.rest()


@pytest.mark.rabbitmq
def test_a_refused_message_that_is_retried_is_one_of_another_program(site: Site, attacker: Supplier) -> None:
    id, headers, body = taken(site, attacker, "a")
    with site.worker():
        put(attacker, address(site), {**headers, "flowkit-mac": ""}, body)
        wait_until(lambda: refused(site) == 1)
        site.store.dead_letters.retry(site.store.dead_letters.select())
        wait_until(lambda: site.effects() == {"a": 1})
        put(attacker, address(site), headers, body)  # the true one took no harm
        wait_until(lambda: site.effects() == {"a": 2})
    assert {(one.id, one.source) for one in site.seen} == {(id, "foreign"), (id, "shop")}


@pytest.mark.rabbitmq
def test_messages_are_taken_while_keys_are_rotated(
    site: Site, attacker: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "KNOWN_SECONDS", 0.0)
    monkeypatch.setattr(keyring, "HANDOVER_SECONDS", 0.0)
    _, old, body = taken(site, attacker, "a")
    with site.worker():
        site.store.keyring.rotate(3600)
        put(attacker, address(site), old, body)
        wait_until(lambda: site.effects() == {"a": 1})
    _, new, body = taken(site, attacker, "b")
    assert json.loads(old["flowkit-mac"])[0] != json.loads(new["flowkit-mac"])[0]
    site.store.keyring.rotate(0)
    with site.worker():
        put(attacker, address(site), new, body)
        wait_until(lambda: refused(site) == 1)
    assert site.effects() == {"a": 1}


@pytest.mark.rabbitmq
def test_messages_of_the_version_before_come_to_their_end(site: Site, attacker: Supplier) -> None:
    """Some lie in the queue, older workers send others, and all can read those of this version."""
    with site.store.transaction() as unit:
        unit.write("INSERT INTO flowkit_meta (name, value) VALUES ('unsigned', '')", [()])
    site.services.transport.declare(["shop.accept"], [Shared(site.orders.name, ["shop.accept"], False)])

    def old(name: str, row: str) -> None:
        body = Order(name=name).model_dump_json().encode()
        copy = Copy(row, Message(f"id-{name}", "shop", site.orders.name, body), "shop.accept")
        made: dict[str, Any] = dict(properties(copy, time.time(), "", signatures()).headers or {})
        del made["flowkit-mac"]
        put(attacker, address(site), made, body)

    for name in ("a", "b"):
        old(name, "1")
    queue = attacker.subscribe(site.orders.name)
    with site.worker():
        old("c", "2")
        old("a", "3")  # sent again by an older worker
        site.app.publish(site.orders, Order(name="d"))
        wait_until(lambda: site.effects() == {"a": 1, "b": 1, "c": 1, "d": 1})
        found, _ = attacker.get(queue)
        assert site.store.identity() in str(found.headers), "as the version before knows its own"
    site.store.keyring.require()
    with site.worker():
        old("e", "4")
        wait_until(lambda: refused(site) == 1)
        site.app.publish(site.orders, Order(name="f"))
        found, _ = attacker.get(queue)
        assert site.store.identity() not in str(found.headers)
        wait_until(lambda: site.effects() == {"a": 1, "b": 1, "c": 1, "d": 1, "f": 1})


# ------------------------------------------------------------ who sent it


def test_a_source_that_nobody_names_is_refused_as_it_is_defined() -> None:
    for shared, source_from, why in (
        (True, "app_id", r"source_from is 'app_id'; write source_from=.user_id."),
        (False, "user_id", "its source is no shared channel"),
    ):
        app = new_app("shop")
        options: Any = {"source_from": source_from}
        app.flow(app.channel("orders", Order, shared=shared), name="accept", **options)(lambda order: None)
        with pytest.raises(DefinitionError, match=why):
            app.check()


@pytest.mark.rabbitmq
def test_the_user_of_the_broker_is_the_source(tmp_path: Path, rabbitmq_url: str, attacker: Supplier) -> None:
    name = f"orders-{time.time_ns()}"
    user = urlsplit(rabbitmq_url).username
    with closing(Site("shop", name, tmp_path, rabbitmq_url, source_from="user_id")) as site:
        with site.worker():
            claim = {"ce-id": "1", "ce-source": "erp"}
            attacker.send(name, b'{"name": "a"}', headers={**claim, "amqp-user-id": "erp"})
            attacker.send(name, b'{"name": "b"}', headers={**claim, "ce-source": "user:erp"})
            attacker.send(name, b'{"name": "c"}', headers={**claim, "amqp-user-id": "erp"}, user_id=user)
            wait_until(lambda: site.effects() == {"c": 1} and len(site.outcomes) == 3)
            site.rest()
        letters = list(site.store.dead_letters.read(site.store.dead_letters.select()))
    assert [(one.id, one.source) for one in site.seen] == [("1", f"user:{user}")]
    assert len(letters) == 2
    assert all(
        "knows who sent a message by its user_id (source_from=), and it has none" in one.error for one in letters
    )
    attacker.channel.confirm_delivery()
    with pytest.raises(ChannelClosedByBroker, match="user_id property set to 'erp' but authenticated user was"):
        attacker.send(name, b"", user_id="erp")
