"""Channels shared with other stores and with programs that know nothing of FlowKit."""

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pika import BasicProperties, BlockingConnection
from pika.exceptions import ChannelClosedByBroker, UnroutableError
from pydantic import BaseModel
from sqlalchemy.orm import Session

from flowkit import App, ConfigError, DefinitionError, Message, RetryPolicy
from flowkit.engine.worker import Worker
from flowkit.errors import Undecodable
from flowkit.model.identity import Identifier, expand
from flowkit.ports import EXCHANGE, Copy, Dead, Done, Duplicate, Outcome, Retried
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.testing import Harness
from flowkit.transports.rabbitmq.envelope import delivery, event, properties
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.servers import servers
from tests.keys import ring, signatures
from tests.shop import FAST, Base, Effect, Order, effects, new_app, running

DEADLINE_SECONDS = 90.0


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


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


@pytest.fixture
def supplier(rabbitmq_url: str) -> Iterator[Supplier]:
    with closing(Supplier(rabbitmq_url)) as made:
        yield made


@pytest.fixture
def channel() -> str:
    return f"orders-{uuid4()}"


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


@pytest.fixture
def site(tmp_path: Path, rabbitmq_url: str, channel: str) -> Iterator[Site]:
    with closing(Site("shop", channel, tmp_path, rabbitmq_url)) as made:
        yield made


def test_two_stores_share_a_channel(site: Site, tmp_path: Path, rabbitmq_url: str, channel: str) -> None:
    names = {str(number): 1 for number in range(50)}
    with (
        closing(Site("billing", channel, tmp_path, rabbitmq_url)) as other,
        site.worker(),
        other.worker(),
    ):
        site.app.publish_many(site.orders, [Order(name=name) for name in names])
        wait_until(lambda: site.effects() == names == other.effects())
        site.rest()
        other.rest()
        # What came back from the exchange was known for our own: it never reached a claim.
        assert site.outcomes == [Done()] * 50
        assert [balance.accepted for balance in other.store.ledger.balances().values()] == [50]
    assert {message.id for message in site.seen} == {message.id for message in other.seen}
    assert {(message.source, message.type, message.channel) for message in other.seen} == {("shop", "Order", channel)}


def test_what_others_receive_is_a_cloud_event(site: Site, supplier: Supplier, channel: str) -> None:
    with site.worker():
        queue = supplier.subscribe(channel, "Order")
        id = site.app.publish(site.orders, Order(name="a"), key="customer 7", headers={"tenant": "blue"})
        properties, body = supplier.get(queue)
    assert Order.model_validate_json(body) == Order(name="a")
    headers: dict[str, Any] = dict(properties.headers or {})
    headers.pop("x-delivery-count")
    sent = json.loads(headers.pop("flowkit"))
    assert len(sent) == 2
    assert headers.pop("ce-time").endswith("Z")
    assert headers == {
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-source": "shop",
        "ce-type": "Order",
        "ce-partitionkey": "customer 7",
        "content-type": "application/json",
        "tenant": "blue",
    }
    assert (properties.content_type, properties.message_id, properties.app_id) == ("application/json", id, "shop")
    assert properties.delivery_mode == 2


def test_an_event_with_copied_headers_is_one_of_its_own(site: Site, supplier: Supplier, channel: str) -> None:
    with site.worker():
        queue = supplier.subscribe(channel)
        id = site.app.publish(site.orders, Order(name="a"))
        found, body = supplier.get(queue)
        headers: dict[str, Any] = dict(found.headers or {})
        wait_until(lambda: site.effects() == {"a": 1})
        supplier.send(channel, body, headers=headers, message_id=found.message_id, app_id=found.app_id)  # a true copy
        supplier.send(channel, b'{"name": "b"}', headers=headers | {"ce-id": "b"})
        supplier.send(channel, b'{"name": "c"}', headers=headers | {"ce-source": "erp"})
        supplier.send(channel, body, headers=headers | {"ce-id": "again"}, message_id=found.message_id)
        supplier.send(channel, b'{"name": "d"}', headers=headers, message_id=found.message_id)
        supplier.send(channel, b'{"name": "e"}', message_id=id, app_id="shop")  # foreign too, under the id of d: told
        wait_until(lambda: site.effects() == {"a": 2, "b": 1, "c": 1, "d": 1} and len(site.outcomes) == 6)
        site.rest()
    assert sorted(map(repr, site.outcomes)) == [*[repr(Done())] * 5, repr(Duplicate())]
    balance = site.store.ledger.balances()["shop.accept"]
    assert (balance.accepted, balance.reused) == (5, 1)
    assert {(message.id == id, message.source) for message in site.seen} == {
        (True, "shop"), (True, "erp"), (True, "foreign"), (False, "foreign")
    }  # fmt: skip


def test_the_envelope_of_a_copy_that_comes_by_an_exchange_is_not_ours(
    site: Site, supplier: Supplier, channel: str
) -> None:
    copied = properties(
        Copy("row", Message("id-1", "shop", channel, b""), "shop.accept"), time.time(), "queue", signatures()
    )
    headers: dict[str, Any] = dict(copied.headers or {})
    with site.worker():
        supplier.send(channel, b'{"name": "a"}', headers=headers | {"ce-id": "A-1", "ce-source": "erp"})
        wait_until(lambda: site.effects() == {"a": 1})
        site.rest()
    assert [(message.id, message.source) for message in site.seen] == [("A-1", "erp")]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("changed", "own"),
    [
        ({}, True),
        ({"channel": "invoices"}, False),
        ({"body": b"{}"}, False),
        ({"headers": {"ce-id": "2"}}, False),
        ({"headers": {"ce-source": "erp"}}, False),
        ({"headers": {"ce-id": 1}}, False),
        ({"headers": {"ce-id": None}}, False),
        ({"headers": {"flowkit": '[["row", "shop", "0"], "store"]'}}, False),
        # As instances of the version before send it.
        ({"headers": {"flowkit": '["row", "store"]'}}, True),
        ({"headers": {"flowkit": '["row", "store"]', "ce-id": "2"}}, False),
    ],
)
def test_only_what_this_store_gave_to_an_exchange_is_known_for_its_own(
    changed: dict[str, Any], own: bool, lenient: bool
) -> None:
    """Also as this version sends it while versions before have to know it."""
    copy = Copy("row", Message("1", "shop", "orders", b"[]", "Order"), EXCHANGE + "orders")
    made = signatures(lambda: ring()._replace(lenient=lenient))
    sent = event(copy, "store", made)
    headers: dict[str, Any] = dict(sent.headers or {})
    sent.headers = headers | changed.get("headers", {})
    came = "shop.accept", changed.get("store", "store"), sent, changed.get("body", b"[]"), 1
    found = delivery(*came, changed.get("channel", "orders"), "queue", made)
    assert (found is None) == own
    assert found is None or (found.foreign and found.message.source in ("foreign", "erp"))
    straight = delivery(*came, "", "queue", made)
    assert straight is not None, "what is put into the queue of a flow is no copy of what its exchange had"
    assert straight.foreign


@pytest.mark.parametrize(
    "header",
    [
        '["row", "other"]',
        '[["row", "shop", "0"], "other"]',
        '{"row": "store"}',
        '[[], "store"]',
        "no JSON",
        '[["row", "shop"], "store"]',
    ],
)
def test_an_event_with_another_header_keeps_its_source(header: str) -> None:
    made = signatures()
    sent = event(Copy("row", Message("1", "shop", "orders", b"[]", "Order"), EXCHANGE + "orders"), "store", made)
    sent.headers = {**(sent.headers or {}), "flowkit": header}
    found = delivery("shop.accept", "store", sent, b"[]", 1, "orders", "queue", made)
    assert found is not None
    assert (found.foreign, found.message.source, found.message.id) == (True, "shop", "1")


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents:", "cloudEvents_"])
def test_a_cloud_event_of_another_program_keeps_its_identity(
    site: Site, supplier: Supplier, channel: str, prefix: str
) -> None:
    attributes = {
        "id": "A-1",
        "source": "/erp",
        "type": "order.placed",
        "time": "2026-01-02T03:04:05Z",
        "partitionkey": "k",
        "correlationid": "c",
    }
    headers = {f"{prefix}{name}": value for name, value in attributes.items()}
    with site.worker():
        for _ in range(3):
            supplier.send(channel, b'{"name": "a"}', headers={**headers, "x-count": 7, "x-deep": {"a": [1, True]}})
        wait_until(lambda: len(site.outcomes) == 3)
        site.rest()
    assert site.effects() == {"a": 1}
    assert sorted(map(repr, site.outcomes)) == [repr(Done()), repr(Duplicate()), repr(Duplicate())]
    message = site.seen[0]
    assert (message.id, message.source, message.type, message.key) == ("A-1", "/erp", "order.placed", "k")
    assert (message.time, message.correlation, message.channel) == (1767323045.0, "c", channel)
    assert message.headers["x-count"] == "7"
    assert message.headers["x-deep"] == '{"a":[1,true]}'


def test_two_suppliers_may_use_the_same_id(site: Site, supplier: Supplier, channel: str) -> None:
    with site.worker():
        for name in ("a", "b"):
            supplier.send(channel, json.dumps({"name": name}).encode(), message_id="1", app_id=f"supplier-{name}")
        wait_until(lambda: site.effects() == {"a": 1, "b": 1})
        site.rest()


def test_row_49_a_business_key_identifies_what_has_no_id(
    tmp_path: Path, rabbitmq_url: str, channel: str, supplier: Supplier
) -> None:
    with closing(Site("shop", channel, tmp_path, rabbitmq_url, id_from="name")) as site:
        with site.worker():
            for number in range(30):
                # Each time under another id, as a producer does that makes them when it sends.
                supplier.send(channel, json.dumps({"name": str(number % 10)}).encode(), message_id=str(uuid4()))
            wait_until(lambda: len(site.outcomes) == 30)
            site.rest()
        assert site.effects() == {str(number): 1 for number in range(10)}
        balance = site.store.ledger.balances()["shop.accept"]
        assert (balance.accepted, balance.applied, balance.unidentified) == (10, 10, 0)


def test_row_49_without_a_key_each_is_applied_said_once_and_counted(
    site: Site, supplier: Supplier, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    with site.worker():
        for _ in range(3):
            supplier.send(channel, b'{"name": "a"}')
        supplier.send(channel, b'{"name": "b"}', message_id="b")
        wait_until(lambda: site.effects() == {"a": 3, "b": 1})
        site.rest()
    balance = site.store.ledger.balances()["shop.accept"]
    assert (balance.accepted, balance.applied, balance.unidentified) == (4, 4, 3)
    assert [record.message for record in caplog.records if "without an id" in record.message] == [
        "flow shop.accept: messages of other programs come without an id, so each is applied at least once: again "
        "whenever the broker delivers it again; name a field that identifies them, @app.flow(…, id_from=…)"
    ]


def test_row_49_a_redelivery_takes_effect_once(
    tmp_path: Path, rabbitmq_url: str, channel: str, supplier: Supplier
) -> None:
    """Applied, and the acknowledgement never sent: the broker delivers again."""
    with closing(Site("shop", channel, tmp_path, rabbitmq_url, id_from=lambda order: order.name)) as site:
        with site.worker() as worker:
            settled = threading.Event()
            for lane in worker.lanes:
                lane.consumer.settle = lambda deliveries: settled.set()  # type: ignore[method-assign]
            supplier.send(channel, b'{"name": "a"}')
            assert settled.wait(DEADLINE_SECONDS)
        assert site.effects() == {"a": 1}
        with site.worker():
            wait_until(lambda: Duplicate() in site.outcomes)
            site.rest()
        assert site.effects() == {"a": 1}
        assert site.store.ledger.balances()["shop.accept"].accepted == 1


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


@dataclass
class Parcel:
    number: int


class Line(BaseModel):
    order: Order
    number: int


@pytest.mark.parametrize(
    ("kind", "id_from", "message"),
    [
        (Order, "nmae", "has no field nmae; its fields are name, deed"),
        (Parcel, "id", "has no field id; its fields are number"),
        (bytes, "id", "its body is bytes; write a function"),
    ],
)
def test_a_key_that_cannot_be_there_is_refused(kind: Any, id_from: str, message: str) -> None:
    app = App("shop")
    app.flow(app.channel("in", kind, shared=True), name="take", id_from=id_from)(lambda body: None)
    with pytest.raises(DefinitionError, match=f"flow shop.take: id_from='{id_from}'.*{message}"):
        app.check()


def _found(kind: Any, id_from: Any, body: bytes) -> str:
    app = App("shop")
    app.flow(app.channel("in", kind), name="take", id_from=id_from)(lambda body: None)
    finder: Identifier = app.flows["shop.take"].identifier
    finder.check()
    return finder.find(Message("given", "erp", "in", body))


def test_a_key_is_a_field_a_path_or_a_function() -> None:
    assert _found(Order, "name", b'{"name": "a"}') == "a"
    assert _found(Parcel, "number", b'{"number": 7}') == "7"
    assert _found(Line, "order.name", b'{"order": {"name": "a"}, "number": 1}') == "a"
    assert _found(dict, "order.name", b'{"order": {"name": "a"}}') == "a"
    assert _found(bytes, lambda body: body[:2].decode(), b"42...") == "42"
    assert _found(Order, None, b'{"name": "a"}') == "given"


def test_a_body_without_its_key_is_a_dead_letter() -> None:
    app = new_app()
    orders = app.channel("orders", dict, shared=True)
    app.flow(orders, name="accept", id_from="number")(lambda body: None)
    with running(app, "sqlite:///:memory:", broker=True) as harness:
        for body in (b"{}", b'{"number": null}', b'{"number": true}', b'{"number": [1]}', b'{"number": ""}', b"no"):
            harness.broker.deliver("shop.accept", Message("", "erp", "", body))
        harness.until_quiet()
        letters = harness.dead()
        assert [letter.reason for letter in letters] == ["undecodable"] * 6
        assert all(letter.message.id.startswith("sha256-") for letter in letters)
        assert {letter.message.channel for letter in letters} == {"orders"}
        assert sum("which is no id" in letter.error for letter in letters) == 5


def test_a_channel_is_shared_or_it_is_not() -> None:
    app = App("shop")
    app.channel("orders", Order, shared=True)
    with pytest.raises(DefinitionError, match="orders is declared twice"):
        app.channel("orders", Order)


GOOD = b'{"name": "a"}'
COMPRESSED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", COMPRESSED),
        ("GZIP", gzip.compress(GOOD[:5], mtime=0) + gzip.compress(GOOD[5:], mtime=0)),
        ("deflate", zlib.compress(GOOD)),
        ("gzip:UTF-8", COMPRESSED),
        ("utf-8", GOOD),
        ("", GOOD),
    ],
)
def test_row_e21_what_others_compress_is_expanded(encoding: str, body: bytes) -> None:
    expanded = expand(Message("a", "erp", "in", body, headers={"content-encoding": encoding, "h": "v"}), len(GOOD))
    assert expanded.body == GOOD
    assert ("content-encoding" in expanded.headers) == (body == GOOD), "the headers say what the body is now"


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("br", GOOD, "its content_encoding is 'br'; it may be gzip, deflate or none"),
        ("gzip, deflate", COMPRESSED, "it may be gzip, deflate or none"),
        ("gzip", GOOD, "its body is not"),
        ("gzip", b"", "is cut off"),
        ("gzip", COMPRESSED[:-9], "is cut off"),
        ("gzip", gzip.compress(b" " * 10_000_000, mtime=0), "exceeds the limit of 1,000 bytes"),
        ("gzip", COMPRESSED + gzip.compress(b" " * 10_000_000, mtime=0), "exceeds the limit of 1,000 bytes"),
        ("gzip", COMPRESSED + b"junk", "its body is not"),
    ],
)
def test_row_e21_what_cannot_be_expanded_is_refused(encoding: str, body: bytes, said: str) -> None:
    with pytest.raises(Undecodable, match=said):
        expand(Message("a", "erp", "in", body, headers={"content-encoding": encoding}), 1_000)


def test_row_e21_what_others_compress_takes_effect_or_is_dead(site: Site, supplier: Supplier, channel: str) -> None:
    blobs: list[Message] = []

    def keep(body: bytes, message: Message) -> None:
        blobs.append(message)

    site.app.flow(site.app.channel(f"{channel}-blobs", bytes, shared=True))(keep)
    site.app.connect(site.services)
    with site.worker():
        supplier.send(channel, COMPRESSED, message_id="a", content_encoding="gzip")
        supplier.send(channel, GOOD, message_id="b", content_encoding="br")
        supplier.send(f"{channel}-blobs", COMPRESSED, message_id="c", content_encoding="gzip")
        wait_until(lambda: len(blobs) == 1 and site.effects() == {"a": 1})
        wait_until(lambda: site.store.ledger.balances()["shop.accept"].dead == 1)
        site.rest()
    (letter,) = site.store.dead_letters.read(site.store.dead_letters.select())
    assert (letter.message.headers["ce-id"], letter.message.body) == ("b", GOOD)
    assert "its content_encoding is 'br'" in letter.error
    assert (blobs[0].body, blobs[0].headers) == (COMPRESSED, {"content-encoding": "gzip"}), "bytes come as they are"
