"""Raw inputs as AMQP: bytes that no client library would write, put straight into a queue or an exchange."""

import datetime
import decimal
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from pika import BasicProperties, BlockingConnection

from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.servers import servers
from tests.fuzz.corpus import FLOWS, OWN, SHORT_PROPERTIES, Raw, Typed, damaged
from tests.fuzz.oracle import Told

SHORT_BYTES = 255
NAMES = {"id": "id", "source": "source", "type": "type", "key": "partitionkey", "time": "time",
         "correlation": "correlationid", "causation": "causationid"}  # fmt: skip
"""Fields of an envelope as attributes of a CloudEvent."""
PROPERTIES = {"id": "message_id", "source": "app_id", "type": "type", "correlation": "correlation_id"}
"""The same as AMQP's own properties."""
ORDER = ("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
         "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")  # fmt: skip


class Sender:
    """A program that puts what it likes into the queues of a store's flows."""

    def __init__(self, url: str, store: str) -> None:
        self._queues = Queues(store)
        self._connection = BlockingConnection(servers(url)[0])
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def put(self, raw: Raw) -> Told:
        """Send an input. Never refused: brokers look at nothing of it. Blocks until it is confirmed."""
        exchange, key = (raw.channel, "Order") if raw.exchange else ("", self._queues.name(FLOWS[raw.channel]))
        self._channel.basic_publish(exchange, key, raw.body, Properties(raw), mandatory=True)
        return Told()

    def close(self) -> None:
        """Give up the connection."""
        if self._connection.is_open:
            self._connection.close()


class Properties(BasicProperties):
    """The properties of an input, encoded without a look at what they are."""

    def __init__(self, raw: Raw) -> None:
        super().__init__()
        self._made = properties(raw)

    def encode(self) -> list[bytes]:
        flags, pieces = 0, [b""]
        for number, name in enumerate(ORDER):
            value = self._made.get(name)
            if value is None:
                continue
            flags |= 1 << (15 - number)
            if name == "headers":
                pieces.append(table(value))
            elif name == "timestamp":
                pieces.append(struct.pack(">Q", value))
            elif name in ("priority", "delivery_mode"):
                pieces.append(struct.pack(">B", value))
            else:
                pieces.append(short(str(value)))
        pieces[0] = struct.pack(">H", flags)
        return pieces


def properties(raw: Raw) -> dict[str, Any]:
    """The properties by name; its envelope is a header of FlowKit's, attributes of a CloudEvent, or properties."""
    envelope, headers = raw.envelope, dict(raw.headers)
    made: dict[str, Any] = {}
    if not raw.foreign:
        own = json.dumps([envelope[name] for name in OWN if name in envelope], default=str).encode()
        headers["flowkit"] = damaged(own, raw.edits).decode("latin-1")
        made["message_id"] = envelope.get("id")
    elif raw.prefix:
        for field, name in NAMES.items():
            value = envelope.get(field)
            if value is not None:
                edited = raw.edits and isinstance(value, str)
                headers[raw.prefix + name] = damaged(value.encode(), raw.edits) if edited else value
    else:
        made |= {name: envelope.get(field) for field, name in PROPERTIES.items()}
    return {**made, **raw.properties, "headers": headers}


def table(fields: Mapping[str, Any]) -> bytes:
    """A table of AMQP."""
    encoded = b"".join(short(name) + typed(value) for name, value in fields.items())
    return struct.pack(">I", len(encoded)) + encoded


def short(text: str) -> bytes:
    """A short string, cut where it is none. Lone surrogates make it no UTF-8."""
    encoded = text.encode("utf-8", "surrogatepass")[:SHORT_BYTES]
    return bytes([len(encoded)]) + encoded


def typed(value: Any) -> bytes:
    """A value with its type."""
    match value:
        case Typed(kind=kind, data=data):
            return kind.encode() + data
        case None:
            return b"V"
        case bool():
            return b"t" + bytes([value])
        case int() if -(2**63) <= value < 2**63:
            return b"l" + struct.pack(">q", value)
        case float() if math.isfinite(value):
            return b"d" + struct.pack(">d", value)
        case decimal.Decimal() if abs(value) < 2**31:
            return b"D\x00" + struct.pack(">i", int(value))
        case datetime.datetime():
            return b"T" + struct.pack(">Q", int(value.timestamp()))
        case dict():
            return b"F" + table({str(name): one for name, one in value.items()})
        case list():
            encoded = b"".join(map(typed, value))
            return b"A" + struct.pack(">I", len(encoded)) + encoded
        case bytes():
            return b"x" + struct.pack(">I", len(value)) + value
    encoded = str(value).encode("utf-8", "surrogatepass")
    return b"S" + struct.pack(">I", len(encoded)) + encoded


assert set(SHORT_PROPERTIES) <= set(ORDER)
