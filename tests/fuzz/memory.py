"""Raw inputs as messages of a broker in memory."""

import json
from typing import Any

from flowkit import Message
from flowkit.ports import Copy
from flowkit.transports.memory.transport import MemoryTransport
from tests.fuzz.corpus import FLOWS, Raw, damaged
from tests.fuzz.oracle import Told


def put(broker: MemoryTransport, raw: Raw) -> Told:
    """Queue an input. Never refused."""
    envelope, headers = raw.envelope, raw.headers
    if raw.edits:
        encoded = damaged(json.dumps(headers).encode(), raw.edits)
        try:
            headers = json.loads(encoded)
        except ValueError:
            headers = encoded  # type: ignore[assignment]
    fields: dict[str, Any] = {name: envelope.get(name) for name in Message._fields}
    message = Message(**fields | {"body": raw.body, "headers": headers})
    flow = FLOWS[raw.channel]
    if raw.foreign:
        broker.deliver(flow, message._replace(channel="", id=message.id or ""))
    else:
        row, generation, attempts, staged = (envelope.get(name) for name in ("row", "generation", "attempts", "staged"))
        broker.send([Copy(row, message, flow, generation, attempts, 0.0, staged)])  # type: ignore[arg-type]
    return Told()
