"""Messages as AMQP: the body as it is, the envelope in one header of FlowKit's own, the user's headers beside it.

For other programs the envelope is a CloudEvent 1.0 in binary mode: its attributes are headers with the prefix `ce-`, as
in the AMQP binding of CloudEvents, which is for AMQP 1.0 and has other prefixes. All of them are understood.
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
"""The header that holds the envelope, as a JSON array: AMQP's own properties end at 255 bytes. What goes to an exchange
has a row and a hash by which this store knows its own. Foreign messages have none, or a copied one."""
ENVELOPE: TypeAdapter[tuple[Any, ...]] = TypeAdapter(
    tuple[str, Count, Count, Time, str, str, str, str, str | None, Time, str | None, str | None],
    config=ConfigDict(strict=True),
)
"""The row, generation, attempts, when it was staged, and the message without its body and headers."""
FORGED = (
    "it claims to be of this store, and has no valid signature: somebody else made or changed it, its key verifies no "
    "more (flowkit keys list), or a version before sent it; retry it only if its source did send it: it then counts as "
    "a message of another program"
)
STRANGE = (
    "it comes from another program, straight into the queue of a flow whose channel is for this app alone; declare the "
    "channel shared=True, and let others send to its exchange"
)
COUNT = "x-delivery-count"
"""The header in which a quorum queue counts redeliveries."""
SHORT = 255
"""The most bytes of an AMQP property."""
ROUTING = ("CC", "BCC")
"""Headers by which a sender routes: RabbitMQ takes them as such again from who sends a message on."""
PROPERTIES = ("content_type", "correlation_id", "message_id", "type", "app_id")
PREFIX = "ce-"
PREFIXES = (PREFIX, "ce_", "cloudEvents:", "cloudEvents_")
"""Before the names of CloudEvents attributes."""


def properties(copy: Copy, staged: float, address: str, signatures: Signatures) -> BasicProperties:
    """The properties of a copy that was staged at a time, in seconds since the epoch, for the queue of that name."""
    id, source, channel, body, kind, key, time, correlation, causation, headers, _ = copy.message
    own = to_json(
        [copy.row, copy.generation, copy.attempts, staged, id, source, channel, kind, key, time, correlation, causation]
    ).decode()
    if SIGNATURE in headers:  # a version before took it for one of the user's
        headers = {name: value for name, value in headers.items() if name != SIGNATURE}
    return BasicProperties(
        delivery_mode=DeliveryMode.Persistent,
        message_id=_short(id),
        headers={**headers, HEADER: own, SIGNATURE: signatures.sign(address, own, headers, body)},
    )


def event(copy: Copy, store: str, signatures: Signatures) -> BasicProperties:
    """The properties of a copy for an exchange of other programs."""
    id, source, _, body, kind, key, time, correlation, causation, headers, _ = copy.message
    made, origin = signatures.seal(copy.flow, copy.row, id, source, body)
    if signatures.lenient:  # versions before know only this for their store's own
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
    """What other programs may bind to at an exchange: the type of the message."""
    return _short(copy.message.type) or ""


def row(found: BasicProperties) -> str:
    """The row of a copy that came back."""
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
    """The delivery to a flow of a store from the queue `address`: by the exchange of a shared `channel`, or straight.
    `channel` is None where other programs have nothing to put into this queue.

    None for what that store itself gave to the exchange: its own flows got copies of their own. Only these come with an
    envelope of FlowKit's, and never by an exchange. An envelope without a valid signature is refused, but from versions
    before.
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
            if sent.source in ("", message.source):  # it has our name, and must not take an id of ours
                message = message._replace(source=NAMELESS)
    return Delivery(message, flow, deliveries=count, tag=tag, foreign=True)


def seal(id: str, source: str, channel: str, body: bytes) -> str:
    """What tells a copy for the exchange of a channel from another event that has its headers."""
    return digest(to_json([id, source, channel]) + body)


class Given(NamedTuple):
    """The origin of an event, as it says itself. A version before says less: the rest is empty."""

    row: str
    source: str
    seal: str
    origin: str
    """The id of the key that made the seal. Of versions before, the id of the store: everybody can make their seals."""


def given(header: str) -> Given | None:
    """The origin that the header of an event says; None where it is none of FlowKit's."""
    try:
        sent, origin = from_json(header)
        row, source, seal = (sent, "", "") if isinstance(sent, str) else sent
    except (TypeError, ValueError):
        return None
    return Given(str(row), str(source), str(seal), str(origin))


def is_own(sent: Given, store: str, channel: str, found: BasicProperties, body: bytes, signatures: Signatures) -> bool:
    """Whether an event at the exchange of a channel is what the store gave to it, and no other one with its header."""
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
    """A message that some other program sent. Its headers become text, whatever AMQP type they have."""
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
    """When a foreign message was made, in seconds since the epoch; 0 for what no clock says."""
    try:
        seconds = datetime.fromisoformat(time).timestamp() if time else float(timestamp)
    except (ValueError, OverflowError, OSError):
        return 0.0
    return seconds if 0 <= seconds <= LAST_SECOND else 0.0


def _short(text: str | None) -> str | None:
    return text if text and len(text.encode()) <= SHORT else None


def _plain(value: object) -> str:
    """A property, which is bytes where it is no UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _text(value: object) -> str:
    """What a header says, with control characters escaped: in columns and other headers they would mean something."""
    plain = isinstance(value, bytes | str)
    text = _plain(value) if plain else to_json(value, fallback=str, bytes_mode="base64").decode().strip('"')
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_decode_value = pika.data.decode_value
NUMBERS = {b"T": struct.Struct(">Q"), b"f": struct.Struct(">f"), b"d": struct.Struct(">d")}
"""What pika 1.4 decodes wrongly in a header table: it cuts floating numbers, and raises for a timestamp that no date
can say, so that one foreign message costs the connection again and again."""


DEEPEST = 32
"""More tables and arrays in each other are not read: pika decodes by recursion, which ends at a few hundred."""
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
