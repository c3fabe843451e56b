"""Messages as AMQP: the body as it is, the envelope in one header of FlowKit's own, the user's headers beside it."""

from collections.abc import Mapping
from typing import Any

from pika import BasicProperties, DeliveryMode
from pydantic_core import from_json, to_json

from flowkit.message import Message
from flowkit.ports import Copy, Delivery

HEADER = "flowkit"
"""The header that holds the envelope, as a JSON array: AMQP's own properties end at 255 bytes. Foreign messages have
none."""
COUNT = "x-delivery-count"
"""The header in which a quorum queue counts redeliveries."""
SHORT = 255
"""The most bytes of an AMQP property."""


def properties(copy: Copy, staged: float) -> BasicProperties:
    """The properties of a copy that was staged at a time, in seconds since the epoch."""
    id, source, channel, _, kind, key, time, correlation, causation, headers = copy.message
    own = to_json(
        [copy.row, copy.generation, copy.attempts, staged, id, source, channel, kind, key, time, correlation, causation]
    )
    return BasicProperties(
        delivery_mode=DeliveryMode.Persistent,
        message_id=id if len(id.encode()) <= SHORT else None,
        headers={**headers, HEADER: own.decode()},
    )


def row(found: BasicProperties) -> str:
    """The row of a copy that came back."""
    headers: dict[str, Any] = dict(found.headers or {})
    return str(from_json(headers[HEADER])[0])


def delivery(flow: str, found: BasicProperties, body: bytes, tag: object) -> Delivery:
    """What the broker delivered to a flow."""
    headers: dict[str, Any] = dict(found.headers or {})
    count = int(headers.pop(COUNT, 0)) + 1
    try:
        _, generation, attempts, staged, id, source, channel, kind, key, time, correlation, causation = from_json(
            headers.pop(HEADER)
        )
    except (KeyError, TypeError, ValueError):
        return Delivery(foreign(found, headers, body), flow, deliveries=count, tag=tag)
    message = Message(id, source, channel, body, kind, key, time, correlation, causation, headers)
    return Delivery(message, flow, generation, attempts, count, staged, None, tag)


def foreign(found: BasicProperties, headers: Mapping[str, Any], body: bytes) -> Message:
    """A message that some other program sent. Its headers become text, whatever AMQP type they have."""
    return Message(
        found.message_id or "",
        found.app_id or "foreign",
        "",
        body,
        found.type or "",
        None,
        float(found.timestamp or 0),
        found.correlation_id,
        None,
        {str(name): _text(value) for name, value in headers.items()},
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return to_json(value, fallback=str, bytes_mode="base64").decode()
