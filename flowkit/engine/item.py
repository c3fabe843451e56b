"""One delivery in the pipeline, and the errors that stop its batch."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from flowkit import duration
from flowkit.errors import DefinitionError, FlowKitError, RetryAfter, StoreUnavailable
from flowkit.model.outbox import Outbox
from flowkit.ports import Claim, Delivery, Outcome


@dataclass(eq=False, slots=True)
class Item:
    """One delivery in the pipeline: the message, the state of its handling, and its outcome."""

    delivery: Delivery
    body: object = None
    """The decoded body: the argument of the handler."""
    claim: Claim | None = None
    """The claim that the inbox grants. None for a duplicate."""
    twin: "Item | None" = None
    """Of a duplicate in the same batch: the item that has the claim of this message."""
    claimed: bool = False
    """Whether the claim is written in the transaction, and not only looked up."""
    handled: bool = False
    """Whether the handling is finished: the handler ran, or the message failed without it."""
    unread: bool = False
    """Whether the envelope is valid, but this version of the flow cannot decode the body."""
    error: BaseException | None = None
    outbox: Outbox | None = None
    outcome: Outcome | None = None
    """None if the message was not handled in this batch. The message then stays in the lane."""


class Spoiled(Exception):
    """A handler failed after it had used the transaction. Its writes must not be committed with those of the others."""

    def __init__(self, delivery: Delivery | None = None) -> None:
        """`delivery`: the message that failed, if that is known."""
        super().__init__()
        self.delivery = delivery


class ConnectionDied(StoreUnavailable):
    """The connection was lost while a handler ran: the handler ended it, or the database cannot be reached."""

    def __init__(self, why: str, shut: bool) -> None:
        """`shut`: this process itself has closed the connection."""
        super().__init__(why)
        self.shut = shut


class Exhausted(FlowKitError):
    """A message has no attempt left. Its last attempt ended with the process: by a crash, or at the deadline."""

    def __init__(self, attempts: int, allowed: int) -> None:
        super().__init__(
            f"its {attempts} attempts are used up: the last one ended with its process, by a crash or past its "
            f"deadline, or RetryPolicy(attempts={allowed}) was higher"
        )


class Superseded(BaseException):
    """The message was applied elsewhere after this worker had looked at the inbox, and before its claim.

    A BaseException, so that `except Exception` in a handler does not catch it.
    """


class Refused(Exception):
    """The database refused the transaction when it was staged or committed, because of one of its messages."""


def handle_of(delivery: Delivery) -> Hashable:
    """A value that differs for each delivery, also for two deliveries of the same copy."""
    return delivery.row, delivery.deliveries, delivery.tag


def attempted(delivery: Delivery, claim: Claim | None) -> Delivery:
    """The delivery with the number of attempts from the inbox. The number in the copy may be out of date."""
    return (
        delivery if claim is None or claim.attempts == delivery.attempts else delivery._replace(attempts=claim.attempts)
    )


def checked(error: BaseException) -> BaseException:
    """The error of a handler. For a RetryAfter with an invalid delay, the error that says so."""
    if isinstance(error, RetryAfter):
        try:
            duration.seconds(error.delay, "RetryAfter(delay)")
        except DefinitionError as wrong:
            return wrong
    return error


def finished(items: Sequence[Item]) -> list[Delivery]:
    """The deliveries that have an outcome. The others stay in the lane."""
    return [item.delivery for item in items if item.outcome is not None]
