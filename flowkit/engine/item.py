"""One delivery on its way through the pipeline, and how its way can end early."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from flowkit import duration
from flowkit.errors import DefinitionError, FlowKitError, RetryAfter, StoreUnavailable
from flowkit.model.outbox import Outbox
from flowkit.ports import Claim, Delivery, Outcome


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


def checked(error: BaseException) -> BaseException:
    """The error of a handler; the mistake in it, if it is a RetryAfter with a delay that is none."""
    if isinstance(error, RetryAfter):
        try:
            duration.seconds(error.delay, "RetryAfter(delay)")
        except DefinitionError as wrong:
            return wrong
    return error


def finished(items: Sequence[Item]) -> list[Delivery]:
    """Those that have an outcome: the others stay in the lane."""
    return [item.delivery for item in items if item.outcome is not None]
