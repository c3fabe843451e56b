"""The message: an immutable envelope around bytes."""

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from uuid_utils import uuid7

from flowkit.errors import Undecodable

CONTROL = re.compile(r"[\x00-\x1f\x7f]|[\ud800-\udfff]")
_PRINTED = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")
"""Runs of printable characters. An error shows a header's value without them: only the invalid characters remain."""
MAX_NAME = 255
LAST_SECOND = 253_402_300_799
"""The last second of the year 9999, since the epoch: the latest time of a message."""
MAX_BODY = 16 * 1024 * 1024
"""Bytes of the largest body, unless the app or the transport sets a lower limit."""
BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of bodies after which a batch is full: decoded JSON takes many times its size in memory."""
MAX_HEADERS = 64 * 1024
"""Bytes of all headers together, at most: RabbitMQ takes them and the envelope in one frame of 128 KiB."""
HEADER_BYTES = 8
"""Bytes that a transport adds to a header's name and value, at most."""
CONTENT_TYPE = "content-type"
"""The header that names the media type of the body, in messages of shared channels."""
NAMELESS = "foreign"
"""The source of a foreign message that names no source."""
UNREAD = "flowkit:unread"
"""The source of a dead letter whose foreign message cannot be read. Its id is a hash of the received bytes."""
ORIGINAL_ID, ORIGINAL_SOURCE = "ce-id", "ce-source"
"""The headers in which such a dead letter keeps its original id and source."""
DIGEST_BYTES = 16
USER_ID = "amqp-user-id"
"""The header that names the RabbitMQ user who sent a foreign message. Only the broker can set it."""
CONTENT_ENCODING = "content-encoding"
"""The header that names the compression of a foreign message's body."""


RESERVED = re.compile(
    r"flowkit(-mac)?|cc|bcc|x-delivery-count|x-death|x-(first|last)-death-.*|(ce[-_]|cloudevents[:_]).*", re.I
)
"""Names of the headers that transports and brokers read and write themselves."""


class Message(NamedTuple):
    """A message between flows. Maps to a CloudEvent: id, source, type, time, and the body as its data.

    Source and id together identify a message: two sources may use the same id. `time` is in seconds since the epoch.
    `correlation` is the id of the message that began the conversation; `causation` is the id of the direct cause.
    `attempt` is the number of the handler's current attempt: 1, plus one for each recorded failure. It is not sent
    with the message: outside of a handler it is 1.
    """

    id: str
    source: str
    channel: str
    body: bytes
    type: str = ""
    key: str | None = None
    time: float = 0.0
    correlation: str | None = None
    causation: str | None = None
    headers: Mapping[str, str] = {}
    attempt: int = 1


def new_id() -> str:
    """Return a new message id: a UUIDv7, which sorts by time (RFC 9562)."""
    return str(uuid7())


def digest(*parts: bytes) -> str:
    """Return the BLAKE2b digest of the concatenated parts of a body, as hexadecimal text."""
    made = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        made.update(part)
    return made.hexdigest()


def check_name(what: str, value: object) -> str:
    """Return `value` if it is a valid name: 1 to 255 characters without control characters. `what` is for the error.

    Names become columns, headers and queue names, where CR, LF or NUL would have another meaning.
    Raises Undecodable for any other value.
    """
    if not is_name(value):
        shown = repr(value)[:80]
        raise Undecodable(f"{what} is {shown}; it must be 1 to {MAX_NAME} characters without control characters")
    return str(value)


def is_name(value: object) -> bool:
    """Whether `value` is a valid name; see `check_name`."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and not CONTROL.search(value)


def check_headers(headers: object) -> dict[str, str]:
    """Return a copy of `headers` if they map names to text without control characters, in at most MAX_HEADERS bytes.

    Raises Undecodable otherwise.
    """
    if not isinstance(headers, Mapping):
        raise Undecodable(f"headers are {type(headers).__name__}; they must be a mapping of text to text")
    for name, value in headers.items():
        check_name("a header's name", name)
        if len(name.encode()) > MAX_NAME:
            raise Undecodable(
                f"a header's name is {name!r:.80}; it must be at most {MAX_NAME} bytes as UTF-8, for AMQP"
            )
        if not isinstance(value, str) or CONTROL.search(value):
            shown = _PRINTED.sub("…", value) if isinstance(value, str) else type(value).__name__
            raise Undecodable(f"header {name} is {shown!r:.80}; it must be text without control characters")
    size = sum(len(name.encode()) + len(value.encode()) + HEADER_BYTES for name, value in headers.items())
    if size > MAX_HEADERS:
        raise Undecodable(f"its headers have {size:,} bytes; they may have {MAX_HEADERS:,} together, beside the body")
    return dict(headers)


def check_sent(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of `headers` if they are valid and none is reserved. Raises Undecodable otherwise."""
    checked = check_headers(headers)
    for name in checked:
        if RESERVED.fullmatch(name):
            raise Undecodable(f"header {name} is reserved for brokers and CloudEvents; send it under another name")
    return checked
