"""The envelope of a delivery: checks whether tables and transports can hold it, and replaces the parts they cannot."""

import hashlib
from collections.abc import Mapping
from itertools import accumulate

from flowkit.errors import Undecodable
from flowkit.message import (
    CONTROL,
    HEADER_BYTES,
    LAST_SECOND,
    MAX_HEADERS,
    ORIGINAL_ID,
    ORIGINAL_SOURCE,
    Message,
    check_headers,
    check_name,
    is_name,
)
from flowkit.ports import Delivery

MOST = 2**31 - 1
"""The limit of generations and attempts. Each stays below it, so that the database can still add one."""
UNKNOWN = "unknown"
"""The source or channel of a message whose own cannot be recorded."""
NAME_BYTES, VALUE_BYTES = 200, 4096
"""Bytes that are kept of a header's name and of its value, if the headers cannot be recorded as they are."""


def check_envelope(delivery: Delivery) -> None:
    """Raise Undecodable if a table or a transport cannot hold the envelope."""
    message = delivery.message
    check_name("its id", message.id)
    check_name("its source", message.source)
    check_name("its channel", message.channel)
    check_headers(message.headers)
    if message.type != "":
        check_name("its type", message.type)
    for what, value in (
        ("key", message.key),
        ("correlation id", message.correlation),
        ("causation id", message.causation),
    ):
        if value is not None:
            check_name(f"its {what}", value)
    for what, count in (("generation", delivery.generation), ("attempts", delivery.attempts)):
        if not isinstance(count, int) or not 0 <= count < MOST:
            raise Undecodable(f"its {what} is {count!r:.80}; it must be a number from 0 to {MOST - 1:,}")
    for what, time in (("time", message.time), ("time of staging", delivery.staged)):
        if not is_time(time):
            raise Undecodable(f"its {what} is {time!r:.80}; it must be in seconds since the epoch, to the year 9999")


def is_time(value: object) -> bool:
    """Return whether a value is a time: seconds since the epoch, to the year 9999."""
    return isinstance(value, int | float) and 0 <= value <= LAST_SECOND


def legible(delivery: Delivery) -> Delivery:
    """Return a delivery whose envelope can be recorded. If that of `delivery` cannot, its id becomes the hash of its
    bytes."""
    try:
        check_envelope(delivery)
    except Undecodable:
        # The hash is the same each time that the message arrives, so an id that FlowKit gave it does not count.
        message = delivery.message._replace(body=b"", id="" if delivery.unidentified else delivery.message.id)
        return renamed(delivery, UNKNOWN, repr(message).replace(", attempt=1", ""))  # older versions had no attempt
    return delivery


def renamed(delivery: Delivery, source: str, told: str) -> Delivery:
    """Return a delivery whose id is the hash of its body and of the text `told`. Those parts of its envelope that
    cannot be recorded are replaced."""
    message = delivery.message
    everything = message.body + told.encode("utf-8", "backslashreplace")
    message = message._replace(
        id=f"sha256-{hashlib.sha256(everything).hexdigest()}",
        source=source,
        channel=message.channel if is_name(message.channel) else UNKNOWN,
        type=message.type if is_name(message.type) else "",
        key=message.key if is_name(message.key) else None,
        time=message.time if is_time(message.time) else 0.0,
        correlation=message.correlation if is_name(message.correlation) else None,
        causation=message.causation if is_name(message.causation) else None,
        headers=kept(message, "" if delivery.unidentified else message.id),
    )
    return delivery._replace(message=message, unidentified=False, generation=0, attempts=0, staged=0.0)


def kept(message: Message, id: object) -> dict[str, str]:
    """Return the headers of a message, with its own id and source among them. If they cannot be stored, they are
    escaped, shortened and cut."""
    given = message.headers if isinstance(message.headers, Mapping) else {"headers": message.headers}
    original = {name: value for name, value in ((ORIGINAL_ID, id), (ORIGINAL_SOURCE, message.source)) if value != ""}
    everything = {**original, **given, **original}
    try:
        return check_headers(everything)
    except Undecodable:
        shorter = [
            (shortened(name, NAME_BYTES) or "-", shortened(value, VALUE_BYTES)) for name, value in everything.items()
        ]
        sizes = accumulate(len(name.encode()) + len(value.encode()) + HEADER_BYTES for name, value in shorter)
        return {name: value for (name, value), size in zip(shorter, sizes, strict=True) if size <= MAX_HEADERS}


def shortened(value: object, most: int) -> str:
    """Return text that a header can hold: escaped, of `most` bytes at most."""
    text = value if isinstance(value, str) else repr(value)
    encoded = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text).encode()
    if len(encoded) <= most:
        return encoded.decode()
    return f"{encoded[:most].decode(errors='ignore')}… ({len(text):,} characters)"
