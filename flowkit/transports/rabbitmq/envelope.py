"""Messages as AMQP: the body as it is, the envelope in one header of FlowKit's own, the user's headers beside it.

For other programs the envelope is a CloudEvent 1.0 in binary mode: its attributes are headers with the prefix `ce-`, as
in the AMQP binding of CloudEvents, which is for AMQP 1.0 and has other prefixes. All of them are understood.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pika import BasicProperties, DeliveryMode
from pydantic_core import from_json, to_json

from flowkit.message import CONTENT_TYPE, Message
from flowkit.ports import Copy, Delivery

HEADER = "flowkit"
"""The header that holds the envelope, as a JSON array: AMQP's own properties end at 255 bytes. What goes to an exchange
has the row and the id of the store in it, and nothing else. Foreign messages have none."""
COUNT = "x-delivery-count"
"""The header in which a quorum queue counts redeliveries."""
SHORT = 255
"""The most bytes of an AMQP property."""
PREFIX = "ce-"
PREFIXES = (PREFIX, "ce_", "cloudEvents:", "cloudEvents_")
"""Before the names of CloudEvents attributes."""


def properties(copy: Copy, staged: float) -> BasicProperties:
    """The properties of a copy that was staged at a time, in seconds since the epoch."""
    id, source, channel, _, kind, key, time, correlation, causation, headers = copy.message
    own = to_json(
        [copy.row, copy.generation, copy.attempts, staged, id, source, channel, kind, key, time, correlation, causation]
    )
    return BasicProperties(
        delivery_mode=DeliveryMode.Persistent,
        message_id=_short(id),
        headers={**headers, HEADER: own.decode()},
    )


def event(copy: Copy, store: str) -> BasicProperties:
    """The properties of a copy for an exchange of other programs."""
    id, source, _, _, kind, key, time, correlation, causation, headers = copy.message
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
            HEADER: to_json([copy.row, store]).decode(),
        },
    )


def routing_key(copy: Copy) -> str:
    """What other programs may bind to at an exchange: the type of the message."""
    return _short(copy.message.type) or ""


def row(found: BasicProperties) -> str:
    """The row of a copy that came back."""
    headers: dict[str, Any] = dict(found.headers or {})
    return str(from_json(headers[HEADER])[0])


def delivery(flow: str, store: str, found: BasicProperties, body: bytes, tag: object) -> Delivery | None:
    """What the broker delivered to a flow of a store. None for what that store itself gave to an exchange: its own
    flows got copies of their own."""
    headers: dict[str, Any] = dict(found.headers or {})
    count = int(headers.pop(COUNT, 0)) + 1
    try:
        match from_json(headers.pop(HEADER)):
            case [_, generation, attempts, staged, id, source, channel, kind, key, time, correlation, causation]:
                message = Message(id, source, channel, body, kind, key, time, correlation, causation, headers)
                return Delivery(message, flow, generation, attempts, count, staged, None, tag)
            case [_, origin] if origin == store:
                return None
    except (KeyError, TypeError, ValueError):
        pass  # not ours
    return Delivery(foreign(found, headers, body), flow, deliveries=count, tag=tag, foreign=True)


def foreign(found: BasicProperties, headers: Mapping[str, Any], body: bytes) -> Message:
    """A message that some other program sent. Its headers become text, whatever AMQP type they have."""
    kept = {str(name): _text(value) for name, value in headers.items()}
    attributes = {
        name.removeprefix(prefix): value
        for name, value in kept.items()
        for prefix in PREFIXES
        if name.startswith(prefix)
    }
    if found.content_type:
        kept.setdefault(CONTENT_TYPE, found.content_type)
    return Message(
        id=attributes.get("id") or found.message_id or "",
        source=attributes.get("source") or found.app_id or "foreign",
        channel="",
        body=body,
        type=attributes.get("type") or found.type or "",
        key=attributes.get("partitionkey"),
        time=_seconds(attributes.get("time"), found),
        correlation=attributes.get("correlationid") or found.correlation_id,
        causation=attributes.get("causationid"),
        headers=kept,
    )


def _seconds(time: str | None, found: BasicProperties) -> float:
    try:
        return datetime.fromisoformat(time).timestamp() if time else float(found.timestamp or 0)
    except (ValueError, OverflowError):
        return 0.0


def _short(text: str | None) -> str | None:
    return text if text and len(text.encode()) <= SHORT else None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return to_json(value, fallback=str, bytes_mode="base64").decode()
