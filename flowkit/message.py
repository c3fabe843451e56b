"""The message: an immutable envelope around bytes."""

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from uuid_utils import uuid7

from flowkit.errors import Undecodable

CONTROL = re.compile(r"[\x00-\x1f\x7f]|[\ud800-\udfff]")
_PRINTED = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")
"""The part of a header's value that an error leaves out: all but the characters at fault."""
MAX_NAME = 255
LAST_SECOND = 253_402_300_799
"""Of the year 9999: no clock says more."""
MAX_BODY = 16 * 1024 * 1024
"""The largest body, in bytes, unless the app or the transport sets less."""
BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends with the message whose body brings it to so many bytes: as objects, JSON takes many times its size."""
MAX_HEADERS = 64 * 1024
"""The most bytes of all headers together: RabbitMQ takes them, with the envelope, in one frame of 128 KiB."""
HEADER_BYTES = 8
"""What a transport adds to a header's name and value, at most."""
CONTENT_TYPE = "content-type"
"""The header in which messages of shared channels say what their body is."""
NAMELESS = "foreign"
"""The source of a message of another program that names none of its own."""
UNREAD = "flowkit:unread"
"""The source of a dead letter of another program whose message cannot be read: its id is the hash of what came."""
ORIGINAL_ID, ORIGINAL_SOURCE = "ce-id", "ce-source"
"""The headers in which such a letter keeps the id and the source that it came with."""
DIGEST_BYTES = 16
USER_ID = "amqp-user-id"
"""The header of a message of another program that says which user of RabbitMQ sent it. Nobody else can set it."""
CONTENT_ENCODING = "content-encoding"
"""The header in which messages of other programs say how their body is compressed."""


RESERVED = re.compile(
    r"flowkit(-mac)?|cc|bcc|x-delivery-count|x-death|x-(first|last)-death-.*|(ce[-_]|cloudevents[:_]).*", re.I
)
"""Headers that transports and brokers read and write themselves."""


class Message(NamedTuple):
    """What travels between flows. Maps to a CloudEvent: id, source, type, time and the body as its data.

    `(source, id)` is its identity: two producers may use the same id. `time` is in seconds since the epoch.
    `correlation` is the id of the message that began the conversation, `causation` that of its direct cause.
    `attempt` tells a handler which attempt this is: 1, and one more for each recorded failure. Outside
    of a handler it is 1, for it does not travel.
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
    """A fresh message id: UUIDv7, sortable by time (RFC 9562)."""
    return str(uuid7())


def digest(*parts: bytes) -> str:
    """The digest of a body that these parts make in turn, as text: another body has another one."""
    made = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        made.update(part)
    return made.hexdigest()


def check_name(what: str, value: object) -> str:
    """`value` if it can name something: 1 to 255 characters, none of them control characters.

    Such names become columns, headers and queue names, where CR, LF or NUL would mean something else.
    Raises Undecodable otherwise.
    """
    if not is_name(value):
        shown = repr(value)[:80]
        raise Undecodable(f"{what} is {shown}; it must be 1 to {MAX_NAME} characters without control characters")
    return str(value)


def is_name(value: object) -> bool:
    """Whether `value` can name something: see `check_name`."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and not CONTROL.search(value)


def check_headers(headers: object) -> dict[str, str]:
    """`headers` if they are a mapping of names to text without control characters, of at most MAX_HEADERS bytes.
    Raises Undecodable otherwise."""
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
    """`headers` if a message can be sent with them. Raises Undecodable otherwise."""
    checked = check_headers(headers)
    for name in checked:
        if RESERVED.fullmatch(name):
            raise Undecodable(f"header {name} is reserved for brokers and CloudEvents; send it under another name")
    return checked
