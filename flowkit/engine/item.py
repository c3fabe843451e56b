"""An item: one delivery on its way through the pipeline, and the errors that can end its way early."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from flowkit import duration
from flowkit.errors import DefinitionError, FlowKitError, RetryAfter, StoreUnavailable
from flowkit.model.outbox import Outbox
from flowkit.ports import Claim, Delivery, Outcome


@dataclass(eq=False, slots=True)
class Item:
    """One delivery on its way through the pipeline, with what each step finds out about it."""

    delivery: Delivery
    body: object = None
    claim: Claim | None = None
    """The claim that the inbox holds for the message; None for a duplicate."""
    twin: "Item | None" = None
    """The item that has the claim, when the same message came twice in one batch."""
    claimed: bool = False
    handled: bool = False
    unread: bool = False
    """Whether the envelope is valid, but this version of the flow cannot take the body."""
    error: BaseException | None = None
    outbox: Outbox | None = None
    outcome: Outcome | None = None
    """None if the batch did not handle the message, which then stays in the lane."""


class Spoiled(Exception):
    """A handler failed after it had used the transaction. Its writes must not be committed with those of others."""

    def __init__(self, delivery: Delivery | None = None) -> None:
        """`delivery`: that of the message which failed, if known."""
        super().__init__()
        self.delivery = delivery


class ConnectionDied(StoreUnavailable):
    """The connection was lost while a handler ran: the handler ended it, or the database cannot be reached."""

    def __init__(self, why: str, shut: bool) -> None:
        """`shut`: whether this process has closed the connection."""
        super().__init__(why)
        self.shut = shut


class Exhausted(FlowKitError):
    """A message has no attempt left: its process died, or its handler ran past its deadline, in the last one."""

    def __init__(self, attempts: int, allowed: int) -> None:
        super().__init__(
            f"its {attempts} attempts are used up: the last one ended with its process, by a crash or past its "
            f"deadline, or RetryPolicy(attempts={allowed}) was higher"
        )


class Superseded(BaseException):
    """The message was applied elsewhere between the look and the claim. It is no Exception, so that a handler's
    `except` does not catch it."""


class Refused(Exception):
    """The database refused the commit, because of something that a message of the batch did."""


def handle_of(delivery: Delivery) -> Hashable:
    """Return a key that only this delivery of this copy has."""
    return delivery.row, delivery.deliveries, delivery.tag


def attempted(delivery: Delivery, claim: Claim | None) -> Delivery:
    """Return the delivery with the attempts that the inbox knows of. Its own number is as old as its copy."""
    return (
        delivery if claim is None or claim.attempts == delivery.attempts else delivery._replace(attempts=claim.attempts)
    )


def checked(error: BaseException) -> BaseException:
    """Return the error of a handler. For a RetryAfter whose delay is invalid, return the error that says so."""
    if isinstance(error, RetryAfter):
        try:
            duration.seconds(error.delay, "RetryAfter(delay)")
        except DefinitionError as wrong:
            return wrong
    return error


def finished(items: Sequence[Item]) -> list[Delivery]:
    """Return the deliveries that have an outcome. The others stay in the lane."""
    return [item.delivery for item in items if item.outcome is not None]
