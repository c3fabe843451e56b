"""One delivery on its way through the pipeline, and how its way can end early."""

import hashlib
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from flowkit import duration
from flowkit.disclosure import told
from flowkit.errors import DefinitionError, FlowKitError, RetryAfter, StoreUnavailable, Undecodable
from flowkit.flow import Outbox
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
from flowkit.ports import Claim, Dead, Delivery, Letter, Outcome

if TYPE_CHECKING:
    from flowkit.engine.async_bridge import AsyncBridge

MOST = 2**31 - 1
"""Generations and attempts stay below it: the databases take one more."""
UNKNOWN = "unknown"
"""Source or channel of a message whose own cannot be recorded."""
NAME_BYTES, VALUE_BYTES = 200, 4096
"""So much is kept of a header's name, and of its value, where not all can be."""


@dataclass(eq=False, slots=True)
class Item:
    """One delivery on its way: what came, and what came of it."""

    delivery: Delivery
    body: object = None
    claim: Claim | None = None
    """What the inbox says; None for a duplicate."""
    twin: "Item | None" = None
    """Who has the claim of the same message, which came twice at once."""
    claimed: bool = False
    handled: bool = False
    unread: bool = False
    """Whether its envelope is good, and its body is not what the flow takes in this version."""
    error: BaseException | None = None
    outbox: Outbox | None = None
    bridge: "AsyncBridge | None" = None
    """Where an `async def` handler works; see `AsyncPipeline`."""
    outcome: Outcome | None = None
    """None: not handled in this batch; it stays in the lane."""


class Spoiled(Exception):
    """A handler failed after it had used the transaction: what it did must not commit with the others'."""

    def __init__(self, delivery: Delivery | None = None) -> None:
        """`delivery`: of the message that failed, where that is known."""
        super().__init__()
        self.delivery = delivery


class ConnectionDied(StoreUnavailable):
    """The connection was lost while a handler ran. The handler did it, or the database went away."""

    def __init__(self, why: str, shut: bool) -> None:
        """`shut`: this process has closed it."""
        super().__init__(why)
        self.shut = shut


class Exhausted(FlowKitError):
    """The attempts of a message are used up by deaths of its process or by its deadline."""

    def __init__(self, attempts: int, allowed: int) -> None:
        super().__init__(
            f"its {attempts} attempts are used up: the last one ended with its process, by a crash or past its "
            f"deadline, or RetryPolicy(attempts={allowed}) was higher"
        )


class Superseded(BaseException):
    """The message was applied elsewhere between the look and the claim. Passes through the handler's `except`."""


class Refused(Exception):
    """The database refused the transaction at its end, for something that one of its messages did."""


def handle_of(delivery: Delivery) -> Hashable:
    """What tells one handing out of a copy from every other."""
    return delivery.row, delivery.deliveries, delivery.tag


def attempted(delivery: Delivery, claim: Claim | None) -> Delivery:
    """A delivery with the attempts that the inbox knows of: its own are as old as its copy."""
    return (
        delivery if claim is None or claim.attempts == delivery.attempts else delivery._replace(attempts=claim.attempts)
    )


def check_envelope(delivery: Delivery) -> None:
    """Raise Undecodable when the envelope holds what the tables or the transports cannot."""
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
    """Whether a clock can say this."""
    return isinstance(value, int | float) and 0 <= value <= LAST_SECOND


def legible(delivery: Delivery) -> Delivery:
    """A delivery whose envelope can be recorded: what cannot is replaced, its id by the hash of its bytes."""
    try:
        check_envelope(delivery)
    except Undecodable:
        # The same each time that it arrives: an id that it got here is none of its bytes.
        message = delivery.message._replace(body=b"", id="" if delivery.unidentified else delivery.message.id)
        return renamed(delivery, UNKNOWN, repr(message).replace(", attempt=1", ""))  # it was none of it once
    return delivery


def renamed(delivery: Delivery, source: str, told: str) -> Delivery:
    """A delivery whose id is the hash of its body and of what else is told of it. What of its envelope cannot be
    recorded is replaced."""
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
    """The headers of a message, and beside them its id and source: as they are, or what can be stored of them."""
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
    """Text that a header can hold: escaped, and of so many bytes at most."""
    text = value if isinstance(value, str) else repr(value)
    encoded = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text).encode()
    if len(encoded) <= most:
        return encoded.decode()
    return f"{encoded[:most].decode(errors='ignore')}… ({len(text):,} characters)"


def letter(item: Item, dead: Dead) -> Letter:
    """The dead letter of a message."""
    error = dead.error
    try:
        stack = "".join(traceback.format_exception(error)) if error else ""
    except Exception:
        stack = "(cannot be shown)"
    attempts = item.claim.attempts if item.claim else 0
    ran = not isinstance(error, Undecodable | Exhausted)
    return Letter(item.delivery, dead.reason, describe(error), storable(stack), attempts + ran)


def describe(error: BaseException | None) -> str:
    """One line of an error, without data: see `told`."""
    return storable(told(error))


def checked(error: BaseException) -> BaseException:
    """The error of a handler; the mistake in it, if it is a RetryAfter with a delay that is none."""
    if isinstance(error, RetryAfter):
        try:
            duration.seconds(error.delay, "RetryAfter(delay)")
        except DefinitionError as wrong:
            return wrong
    return error


def storable(text: str) -> str:
    """Text that every database takes: no NUL, no lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def finished(items: Sequence[Item]) -> list[Delivery]:
    """Those that have an outcome: the others stay in the lane."""
    return [item.delivery for item in items if item.outcome is not None]
