"""Messages as AMQP: the body unchanged, the envelope in one header of FlowKit, and the user's headers.

For other programs the envelope is a CloudEvent 1.0 in binary mode: its attributes are headers with the prefix `ce-`.
The AMQP binding of CloudEvents, for AMQP 1.0, has other prefixes. FlowKit reads all of them.
"""

import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import pika.data
from pika import BasicProperties, DeliveryMode
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from flowkit.message import CONTENT_ENCODING, CONTENT_TYPE, CONTROL, LAST_SECOND, NAMELESS, USER_ID, Message, digest
from flowkit.ports import EXCHANGE, Copy, Delivery
from flowkit.transports.rabbitmq.signature import HEADER as SIGNATURE
from flowkit.transports.rabbitmq.signature import Signatures

Count = Annotated[int, Field(ge=0, lt=2**31)]
Time = Annotated[float, Field(ge=0, le=LAST_SECOND)]
HEADER = "flowkit"
"""The header that holds the envelope, as a JSON array: AMQP's own properties end at 255 bytes. In an event for an
exchange it holds a row and a hash, by which this store recognises its own. A foreign message has none, or a copy."""
ENVELOPE: TypeAdapter[tuple[Any, ...]] = TypeAdapter(
    tuple[str, Count, Count, Time, str, str, str, str, str | None, Time, str | None, str | None],
    config=ConfigDict(strict=True),
)
"""The row, generation, attempts, time of staging, and the message without body and headers."""
FORGED = (
    "it claims to come from this store, but has no valid signature: another program made or changed it, its key has "
    "expired (flowkit keys list), or an older version sent it; retry it only if its source did send it: it then counts "
    "as a message of another program"
)
STRANGE = (
    "another program sent it straight into the queue of a flow whose channel is for this app alone; declare the "
    "channel shared=True, and let others send to its exchange"
)
COUNT = "x-delivery-count"
"""The header in which a quorum queue counts redeliveries."""
SHORT = 255
"""Bytes of an AMQP property, at most."""
ROUTING = ("CC", "BCC")
"""Headers by which RabbitMQ routes. They are removed: if a flow forwarded them, RabbitMQ would route by them again."""
PROPERTIES = ("content_type", "correlation_id", "message_id", "type", "app_id")
PREFIX = "ce-"
PREFIXES = (PREFIX, "ce_", "cloudEvents:", "cloudEvents_")
"""The prefixes of CloudEvents attributes."""


def properties(copy: Copy, staged: float, address: str, signatures: Signatures) -> BasicProperties:
    """Return the AMQP properties of a copy for the queue `address`. `staged` is in seconds since the epoch."""
    id, source, channel, body, kind, key, time, correlation, causation, headers, _ = copy.message
    own = to_json(
        [copy.row, copy.generation, copy.attempts, staged, id, source, channel, kind, key, time, correlation, causation]
    ).decode()
    if SIGNATURE in headers:  # an older version took it for a header of the user's
        headers = {name: value for name, value in headers.items() if name != SIGNATURE}
    return BasicProperties(
        delivery_mode=DeliveryMode.Persistent,
        message_id=_short(id),
        headers={**headers, HEADER: own, SIGNATURE: signatures.sign(address, own, headers, body)},
    )


def event(copy: Copy, store: str, signatures: Signatures) -> BasicProperties:
    """Return the AMQP properties of a copy for the exchange of a shared channel."""
    id, source, _, body, kind, key, time, correlation, causation, headers, _ = copy.message
    made, origin = signatures.seal(copy.flow, copy.row, id, source, body)
    if signatures.lenient:  # older versions recognise their store's events only by this
        made, origin = seal(id, source, copy.exchange, body), store
    attributes = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": kind,
        "time": datetime.fromtimestamp(time, UTC).isoformat().replace("+00:00", "Z"),
        "partitionkey": key,
        "correlationid": correlation,
        "causationid": causation,
    }
    return BasicProperties(
        content_type=_short(headers.get(CONTENT_TYPE)),
        delivery_mode=DeliveryMode.Persistent,
        message_id=_short(id),
        correlation_id=_short(correlation),
        timestamp=int(time),
        type=_short(kind),
        app_id=_short(source),
        headers={
            **headers,
            **{PREFIX + name: value for name, value in attributes.items() if value},
            HEADER: to_json([[copy.row, source, made], origin]).decode(),
        },
    )


def routing_key(copy: Copy) -> str:
    """Return the routing key of a copy at an exchange: the type of the message, to which other programs may bind."""
    return _short(copy.message.type) or ""


def row(found: BasicProperties) -> str:
    """Return the row of a copy that the broker returned."""
    headers: dict[str, Any] = dict(found.headers or {})
    sent = from_json(headers[HEADER])[0]
    return str(sent[0] if isinstance(sent, list) else sent)


def delivery(
    flow: str,
    store: str,
    found: BasicProperties,
    body: bytes,
    tag: object,
    channel: str | None,
    address: str,
    signatures: Signatures,
) -> Delivery | None:
    """Return the delivery of a message from the queue `address` of a flow. May block to read the keys.

    `channel` names the exchange of a shared channel by which it came; it is empty for a message sent to the queue
    itself, and None if the flow's channel is not shared.

    Returns None for an event that this store sent to the exchange: its own flows received copies of their own. Only
    such copies have an envelope of FlowKit, and never by an exchange. An envelope without a valid signature is refused,
    unless the store still accepts unsigned messages.
    """
    headers: dict[str, Any] = dict(found.headers or {})
    redelivered = headers.pop(COUNT, 0)
    count = redelivered + 1 if isinstance(redelivered, int) else 1
    own, signature = headers.pop(HEADER, None), headers.pop(SIGNATURE, None)
    if isinstance(own, str) and not channel:
        with suppress(ValidationError):
            _, generation, attempts, staged, id, source, named, kind, key, time, correlation, causation = (
                ENVELOPE.validate_json(own)
            )
            message = Message(id, source, named, body, kind, key, time, correlation, causation, headers)
            if signatures.lenient:
                return Delivery(message, flow, generation, attempts, count, staged, None, tag)
            signed = signatures.covered(address, own, signature, headers, body)
            if signed is None:
                kept = {name: _text(value) for name, value in headers.items() if name != USER_ID}
                message = message._replace(headers=kept)
                return Delivery(message, flow, deliveries=count, tag=tag, foreign=True, refused=FORGED)
            return Delivery(message._replace(headers=signed), flow, generation, attempts, count, staged, None, tag)
    message = foreign(found, headers, body)
    if channel is None and not signatures.lenient:
        return Delivery(message, flow, deliveries=count, tag=tag, foreign=True, refused=STRANGE)
    if isinstance(own, str) and channel:
        sent = given(own)
        if sent is not None and (sent.origin == store or signatures.knows(sent.origin)):
            if is_own(sent, store, channel, found, body, signatures):
                return None
            if sent.source in ("", message.source):  # it has this store's source, and must not take an id of it
                message = message._replace(source=NAMELESS)
    return Delivery(message, flow, deliveries=count, tag=tag, foreign=True)


def seal(id: str, source: str, channel: str, body: bytes) -> str:
    """Return the hash that tells a copy for an exchange from another event with the same headers."""
    return digest(to_json([id, source, channel]) + body)


class Given(NamedTuple):
    """The origin that an event claims. From an older version, some fields are empty."""

    row: str
    source: str
    seal: str
    origin: str
    """The id of the key that made the seal; from an older version the id of the store, whose seals anyone can make."""


def given(header: str) -> Given | None:
    """Parse the origin in the header of an event; None if FlowKit did not make that."""
    try:
        sent, origin = from_json(header)
        row, source, seal = (sent, "", "") if isinstance(sent, str) else sent
    except (TypeError, ValueError):
        return None
    return Given(str(row), str(source), str(seal), str(origin))


def is_own(sent: Given, store: str, channel: str, found: BasicProperties, body: bytes, signatures: Signatures) -> bool:
    """Whether the store itself sent an event to the exchange of a channel, and no other program copied its header."""
    headers: Mapping[str, Any] = found.headers or {}
    id, source = headers.get(PREFIX + "id"), headers.get(PREFIX + "source")
    if not isinstance(id, str) or not isinstance(source, str):
        return False
    if sent.origin != store:
        return source == sent.source and signatures.is_sealed(
            sent.seal, sent.origin, EXCHANGE + channel, sent.row, id, source, body
        )
    if not sent.seal:
        return (found.message_id, found.app_id) == (_short(id), _short(source))
    return (sent.source, sent.seal) == (source, seal(id, source, channel, body))


def foreign(found: BasicProperties, headers: Mapping[str, Any], body: bytes) -> Message:
    """Return a foreign message. Its headers become text, whatever AMQP type they have."""
    kept = {_text(name): _text(value) for name, value in headers.items() if name not in ROUTING}
    attributes = {
        name.removeprefix(prefix): value
        for name, value in kept.items()
        for prefix in PREFIXES
        if name.startswith(prefix)
    }
    properties = {name: _plain(value) for name in PROPERTIES if (value := getattr(found, name)) is not None}
    if "content_type" in properties:
        kept.setdefault(CONTENT_TYPE, properties["content_type"])
    if found.content_encoding is not None:
        kept[CONTENT_ENCODING] = _text(found.content_encoding)
    kept.pop(USER_ID, None)
    if found.user_id:
        kept[USER_ID] = _text(found.user_id)
    return Message(
        id=attributes.get("id") or properties.get("message_id") or "",
        source=attributes.get("source") or properties.get("app_id") or NAMELESS,
        channel="",
        body=body,
        type=attributes.get("type") or properties.get("type") or "",
        key=attributes.get("partitionkey") or None,
        time=_seconds(attributes.get("time") or "", found.timestamp or 0),
        correlation=attributes.get("correlationid") or properties.get("correlation_id") or None,
        causation=attributes.get("causationid") or None,
        headers=kept,
    )


def _seconds(time: str, timestamp: float) -> float:
    """Return the time of a foreign message, in seconds since the epoch; 0 if it is invalid."""
    try:
        seconds = datetime.fromisoformat(time).timestamp() if time else float(timestamp)
    except (ValueError, OverflowError, OSError):
        return 0.0
    return seconds if 0 <= seconds <= LAST_SECOND else 0.0


def _short(text: str | None) -> str | None:
    return text if text and len(text.encode()) <= SHORT else None


def _plain(value: object) -> str:
    """Return a property as text. pika gives bytes if it is not UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _text(value: object) -> str:
    """Return a header's value as text, with control characters escaped: columns and headers must not hold any."""
    plain = isinstance(value, bytes | str)
    text = _plain(value) if plain else to_json(value, fallback=str, bytes_mode="base64").decode().strip('"')
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_decode_value = pika.data.decode_value
NUMBERS = {b"T": struct.Struct(">Q"), b"f": struct.Struct(">f"), b"d": struct.Struct(">d")}
"""Header types that pika 1.4 decodes wrongly: it truncates floating numbers, and raises for a timestamp beyond the year
9999, so that one foreign message would end the connection again and again."""


DEEPEST = 32
"""Levels of nested tables and arrays that are read: pika decodes by recursion, which fails at a few hundred."""
TOO_DEEP = f"nested more than {DEEPEST} deep"
_depth = threading.local()


def _decode(encoded: bytes, offset: int) -> tuple[Any, int]:
    kind = encoded[offset : offset + 1]
    if kind in (b"F", b"A"):
        depth = getattr(_depth, "now", 0)
        if depth == DEEPEST:
            (length,) = struct.unpack_from(">I", encoded, offset + 1)
            return TOO_DEEP, offset + 5 + length
        _depth.now = depth + 1
        try:
            return _decode_value(encoded, offset)
        finally:
            _depth.now = depth
    if kind not in NUMBERS:
        return _decode_value(encoded, offset)
    (number,) = NUMBERS[kind].unpack_from(encoded, offset + 1)
    dated = kind == b"T" and number <= LAST_SECOND
    return datetime.fromtimestamp(number, UTC) if dated else number, offset + 1 + NUMBERS[kind].size


pika.data.decode_value = _decode
