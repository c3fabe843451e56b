"""The envelope of a delivery: checks whether it can be stored and sent, and replaces the parts that cannot."""

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
"""Generations and attempts have to be less than this: a failure adds one to them, and the columns hold no more."""
UNKNOWN = "unknown"
"""Stands for a source or channel that cannot be recorded."""
NAME_BYTES, VALUE_BYTES = 200, 4096
"""Most bytes of a header's name, and of its value, that are kept when the headers cannot be stored as they are."""


def check_envelope(delivery: Delivery) -> None:
    """Raise Undecodable if the tables or the transports cannot hold a part of the envelope."""
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
    """Whether a value is a time: seconds since the epoch, up to the year 9999."""
    return isinstance(value, int | float) and 0 <= value <= LAST_SECOND


def legible(delivery: Delivery) -> Delivery:
    """The delivery, if its envelope can be recorded. Otherwise the delivery with the hash of its contents as its id,
    and with replacements for the parts that cannot be recorded."""
    try:
        check_envelope(delivery)
    except Undecodable:
        # The hash has to be the same each time that the message arrives. An id that FlowKit gave to it would differ.
        message = delivery.message._replace(body=b"", id="" if delivery.unidentified else delivery.message.id)
        # The hash leaves out the attempt, because messages once had none.
        return renamed(delivery, UNKNOWN, repr(message).replace(", attempt=1", ""))
    return delivery


def renamed(delivery: Delivery, source: str, told: str) -> Delivery:
    """The delivery under another identity: `source`, and the hash of its body and of `told` as its id. The parts of its
    envelope that cannot be recorded are replaced. Its generation and its attempts begin at 0."""
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
    """The headers of a message, together with its original id and source. Headers that cannot be stored as they are
    get escaped and shortened, and those beyond MAX_HEADERS bytes are left out."""
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
    """A value as text that a header can hold. Control characters are escaped. Text of more than `most` bytes is cut,
    and ends with the number of its characters."""
    text = value if isinstance(value, str) else repr(value)
    encoded = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text).encode()
    if len(encoded) <= most:
        return encoded.decode()
    return f"{encoded[:most].decode(errors='ignore')}… ({len(text):,} characters)"
