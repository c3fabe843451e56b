"""RabbitMQ brings messages that no FlowKit made."""

import datetime
import decimal
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import hypothesis
import pika.data
import pytest
from hypothesis import strategies
from pika import BasicProperties, BlockingConnection
from pika.exceptions import UnsupportedAMQPFieldException

from flowkit import App, Message, RetryPolicy
from flowkit.engine.worker import Worker
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.envelope import TOO_DEEP, delivery
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.servers import servers
from tests.support.hostile_broker import GOOD
from tests.support.keys import signatures
from tests.support.shop import Order
from tests.support.waiting import wait_until

# ------------------------------------------------------------ messages


class Raw(bytes):
    """A value of a table, with its type, as it goes over the wire."""


def encode_raw(pieces: list[bytes], value: Any) -> int:
    if isinstance(value, Raw):
        pieces.append(bytes(value))
        return len(value)
    return _encode(pieces, value)


_encode = pika.data.encode_value

EVERY_TYPE: dict[str, Any] = {
    "text": "text",
    "empty": "",
    "bytes": b"\xff\x00",
    "bool": True,
    "long": 2**62,
    "negative": -(2**62),
    "decimal": decimal.Decimal("3.14"),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "nothing": None,
    "table": {"deep": {"deeper": [1, {"a": b"\xfe"}]}},
    "array": ["a", 1, None, [2]],
    "byte": Raw(b"b\xff"),
    "unsigned byte": Raw(b"B\xff"),
    "short": Raw(b"s" + struct.pack(">h", -3)),
    "unsigned short": Raw(b"u" + struct.pack(">H", 3)),
    "int": Raw(b"I" + struct.pack(">i", -3)),
    "unsigned int": Raw(b"i" + struct.pack(">I", 3)),
    "float": Raw(b"f" + struct.pack(">f", 1.5)),
    "double": Raw(b"d" + struct.pack(">d", 1.5)),
    "not utf-8": Raw(b"S" + struct.pack(">I", 2) + b"\xff\xfe"),
    "far future": Raw(b"T" + struct.pack(">Q", 2**63)),
}


class Sink:
    """A worker of one flow, and a program that puts what it likes into its queue."""

    def __init__(self, url: str, broker_url: str) -> None:
        self.app = App("shop")
        self.orders = f"orders-{uuid4()}"
        self.seen: list[Message] = []
        self.app.flow(
            self.app.channel(self.orders, Order, shared=True),
            name="accept",
            retry=RetryPolicy(attempts=2, first="10ms", jitter=0),
        )(self.accept)
        services: Any = connect(Settings(database_url=url, broker_url=broker_url))
        self.services, self.store = services, services.store
        self.worker = Worker(self.app, self.services)
        self.queue = Queues(self.store.identity()).name("shop.accept")
        self.channel = BlockingConnection(servers(broker_url)[0]).channel()
        self.channel.confirm_delivery()

    def accept(self, order: Order, message: Message) -> None:
        self.seen.append(message)
        if order.deed == "fail":
            raise ValueError("no such order")

    def put(self, body: bytes, **properties: Any) -> None:
        self.channel.basic_publish("", self.queue, body, BasicProperties(**properties), mandatory=True)

    def letters(self) -> list[Any]:
        return list(self.store.dead_letters.read(self.store.dead_letters.select()))

    def ended(self) -> int:
        """How many are at their end."""
        return int(self.store.ledger.balances()["shop.accept"].ended)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        try:
            yield
            assert thread.is_alive()
        finally:
            self.worker.stop()
            thread.join(60)
            self.channel.connection.close()
            self.services.close()


@pytest.fixture
def sink(sqlite_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    monkeypatch.setattr(pika.data, "encode_value", encode_raw)
    made = Sink(sqlite_url, rabbitmq_url)
    with made.running():
        yield made


def test_headers_of_every_type_are_kept_as_text(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in EVERY_TYPE.items():
        sink.put(GOOD, message_id=name, headers={name: value})
    sink.put(GOOD, message_id="all", headers=EVERY_TYPE)
    wait_until(lambda: sink.ended() == len(EVERY_TYPE) + 1)
    assert "no connection" not in caplog.text
    seen = {message.id: message.headers for message in sink.seen}
    assert all(isinstance(value, str) for headers in seen.values() for value in headers.values())
    assert seen["all"]["text"] == "text"
    assert json.loads(seen["all"]["table"])["deep"]["deeper"][0] == 1
    assert seen["all"]["bytes"] == "\\xff\\x00"
    assert seen["all"]["far future"] == str(2**63)
    assert seen["all"]["double"] == "1.5"
    assert seen["all"]["decimal"] == "3.14"
    assert seen["all"]["time"] == "2026-01-02T00:00:00Z"
    assert seen.keys() == {*EVERY_TYPE, "all"}


def nested(depth: int) -> Raw:
    """A table in a table, so deep."""
    value = b"I\x00\x00\x00\x01"
    for _ in range(depth):
        inner = b"\x01a" + value
        value = b"F" + struct.pack(">I", len(inner)) + inner
    return Raw(value)


def test_a_header_that_is_nested_too_deeply_costs_no_connection(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    for depth in (31, 32, 33, 300, 5000):
        sink.put(GOOD, message_id=str(depth), headers={"deep": nested(depth), "beside": "it"})
    wait_until(lambda: sink.ended() == 5)
    seen = {message.id: message.headers for message in sink.seen}
    assert {headers["beside"] for headers in seen.values()} == {"it"}
    assert {depth: TOO_DEEP in headers["deep"] for depth, headers in seen.items()} == {
        "31": False, "32": False, "33": True, "300": True, "5000": True,
    }  # fmt: skip
    assert "no connection" not in caplog.text


def test_a_message_that_cannot_be_read_stays_in_its_queue_and_hinders_no_other(
    sink: Sink, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(flow: str, store: str, found: BasicProperties, *rest: Any) -> Any:
        if found.message_id == "bad":
            raise ZeroDivisionError("a defect")
        return delivery(flow, store, found, *rest)

    monkeypatch.setattr("flowkit.transports.rabbitmq.consumer.delivery", read)
    for name in ("bad", "good", "better"):
        sink.put(GOOD, message_id=name)
    wait_until(lambda: sink.ended() == 2)
    assert "flow shop.accept: message bad was left in its queue" in caplog.text
    assert "no connection" not in caplog.text


HOSTILE: list[tuple[str, bytes, dict[str, Any]]] = [
    ("not JSON", b"no JSON", {"message_id": "1"}),
    ("empty", b"", {"message_id": "2"}),
    ("not UTF-8", b"\xff\xfe", {"message_id": "3"}),
    ("deep", b"[" * 100_000, {"message_id": "4"}),
    ("control character in the id", GOOD, {"message_id": "a\nb"}),
    ("NUL in the type", GOOD, {"message_id": "5", "type": "a\0b"}),
    ("NUL in the correlation id", GOOD, {"message_id": "6", "correlation_id": "\0"}),
    ("NUL in the source", GOOD, {"message_id": "7", "app_id": "a\0"}),
    ("an id that is too long", GOOD, {"message_id": "8", "headers": {"ce-id": "x" * 300}}),
    ("headers that are too large", GOOD, {"message_id": "9", "headers": {"many": "x" * 100_000}}),
    ("headers that are too large as text", GOOD, {"message_id": "10", "headers": {"many": b"\0" * 20_000}}),
    ("too large", b'{"name": "' + b"x" * 20_000_000 + b'"}', {"message_id": "11"}),
]


def test_what_cannot_be_decoded_is_a_dead_letter(sink: Sink) -> None:
    for _, body, properties in HOSTILE:
        sink.put(body, **properties)
    wait_until(lambda: sink.ended() == len(HOSTILE))
    assert sink.seen == []
    assert [letter.reason for letter in sink.letters()] == ["undecodable"] * len(HOSTILE)
    assert any("20,000,012 bytes exceeds the limit of 16,777,216 bytes" in letter.error for letter in sink.letters())
    sink.put(GOOD, message_id="good")
    wait_until(lambda: [message.id for message in sink.seen] == ["good"])
    assert sink.store.ledger.balances()["shop.accept"].balanced


ODD: list[dict[str, Any]] = [
    {"message_id": b"\xff"},
    {"message_id": "b", "app_id": b"\xff", "type": b"\xfe", "correlation_id": b"\xfd", "content_type": b"\xfc"},
    {"message_id": "c", "timestamp": 2**64 - 1},
    {"message_id": "d", "timestamp": 0, "priority": 255, "expiration": "100000", "user_id": "flowkit"},
    {"message_id": "e", "headers": {"ce-time": "yesterday", "ce-partitionkey": "", "ce-correlationid": ""}},
    {"message_id": "f", "headers": {"flowkit": "no JSON"}},
    {"message_id": "g", "headers": {"flowkit": json.dumps(["row", "other-store"])}},
    {"message_id": "h", "headers": {"flowkit": json.dumps(["r", -1, 0, 0, "i", "s", "c", "", None, 0, None, None])}},
    {"message_id": "i", "headers": {"flowkit": json.dumps(["r", 2**40, 0, 0, "i", "s", "c", "", None, 0, None, None])}},
    {"message_id": "j", "headers": {"flowkit": {"a": 1}, "x-delivery-count": "many"}},
    {"message_id": "k", "headers": {"CC": [], "BCC": []}},
    {"message_id": "m", "headers": {"a\nb": "c\0d"}},
    {"message_id": "l", "headers": {"x-death": [{"count": 1, "reason": "rejected"}]}},
]


def test_odd_envelopes_are_taken_as_they_come_and_sent_again(sink: Sink) -> None:
    """Each fails once and is retried, so that it goes to the broker a second time, and then is a dead letter."""
    for properties in ODD:
        sink.put(b'{"name": "a", "deed": "fail"}', **properties)
    wait_until(lambda: sink.ended() == len(ODD))
    assert [letter.reason for letter in sink.letters()] == ["failed"] * len(ODD)
    assert len(sink.seen) == 2 * len(ODD)
    assert {message.channel for message in sink.seen} == {sink.orders}
    assert sink.store.ledger.balances()["shop.accept"].accepted == len(ODD)


TEXT = strategies.text(max_size=30)
VALUE = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | TEXT
    | strategies.binary(max_size=30),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SHORT = strategies.none() | TEXT | strategies.binary(max_size=30)
NAMES = TEXT | strategies.sampled_from(
    ["flowkit", "ce-id", "ce-time", "ce-source", "CC", "x-delivery-count", "x-death"]
)


SIGNATURES = signatures()


@hypothesis.given(
    headers=strategies.dictionaries(NAMES, VALUE, max_size=5),
    short=strategies.tuples(SHORT, SHORT, SHORT, SHORT, SHORT),
    time=strategies.none() | strategies.integers(0, 2**64 - 1),
    body=strategies.binary(max_size=50),
)
@hypothesis.settings(max_examples=500, suppress_health_check=list(hypothesis.HealthCheck))
def test_row_48_whatever_arrives_becomes_a_delivery(
    headers: dict[str, Any], short: tuple[Any, ...], time: int | None, body: bytes
) -> None:
    id, app, kind, correlation, content = short
    properties = BasicProperties(
        content_type=content, message_id=id, app_id=app, type=kind, correlation_id=correlation, timestamp=time,
        headers=headers,
    )  # fmt: skip
    try:
        sent = BasicProperties().decode(b"".join(properties.encode()))
    except (UnsupportedAMQPFieldException, AssertionError, UnicodeEncodeError, struct.error, ValueError):
        hypothesis.reject()
    found = delivery("shop.accept", "store", sent, body, 1, "", "queue", SIGNATURES)
    assert found is not None
    assert found.foreign
    assert found.message.body == body
    message = found.message
    assert all(isinstance(one, str) for one in (message.id, message.source, message.type, *message.headers.values()))
