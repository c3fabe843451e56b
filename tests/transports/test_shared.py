"""Channels shared with other stores and with programs that know nothing of FlowKit."""

import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flowkit import Message
from flowkit.ports import EXCHANGE, Copy, Done, Duplicate
from flowkit.transports.rabbitmq.envelope import delivery, event, properties
from tests.support.keys import ring, signatures
from tests.support.shared_site import DEADLINE_SECONDS, Site, Supplier
from tests.support.shop import Order
from tests.support.waiting import wait_until


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
