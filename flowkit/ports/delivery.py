"""Messages on their way: what a lane received, what came of it, and what the store and the transport write."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowkit.message import Message

Identity = tuple[str, str, str]
"""(flow, source, id): what takes effect once."""


class Delivery(NamedTuple):
    """A message as received: one addressed copy in the hands of one lane."""

    message: Message
    flow: str
    generation: int = 0
    """How often it was sent again on purpose. Its inbox row expects this number or a lower one."""
    attempts: int = 0
    """Failures recorded when it was staged. The inbox row, where there is one, knows better."""
    deliveries: int = 1
    """How often it was handed out. With `row` it is the lease token: a stale one changes nothing."""
    staged: float = 0.0
    """When this generation was staged, in seconds since the epoch, by the database's clock."""
    row: str | None = None
    """Its message row, where the transport works on rows; that row is removed in the unit of work."""
    tag: Any = None
    """The transport's own handle to settle it."""
    foreign: bool = False
    """Whether another program sent it: it is accepted when it is first recorded, not when it was sent."""
    unidentified: bool = False
    """Whether it came without an id: it got a fresh one, as it does each time that it arrives."""
    digest: str = ""
    """Of its body, where FlowKit did not choose its id, so that another message may have the same."""
    refused: str = ""
    """Why it is not the message that it claims to be. It is foreign then, and no handler runs for it."""

    @property
    def identity(self) -> Identity:
        return self.flow, self.message.source, self.message.id


class Done(NamedTuple):
    """The handler's effects, the inbox row and the outgoing messages are committed."""


class Duplicate(NamedTuple):
    """It was already applied, is dead, or was sent again since: nothing to do."""


class Retried(NamedTuple):
    """It failed and waits as a row for its next attempt."""

    after: float
    error: BaseException


class Dead(NamedTuple):
    """It is a dead letter."""

    reason: str
    error: BaseException | None = None


class Forwarded(NamedTuple):
    """It was handed to another flow under the same identity."""

    to: str


class Deferred(NamedTuple):
    """It waits as a row until this version of the app, or another, can read it. No attempt."""

    after: float
    error: BaseException


class Expired(NamedTuple):
    """An explicit policy ended it unhandled."""


REFUSED = "refused"
"""The reason of a dead letter that is not the message that it claims to be."""
Outcome = Done | Duplicate | Retried | Dead | Forwarded | Deferred | Expired
EXCHANGE = "exchange:"
"""What is addressed to `exchange:CHANNEL` goes to the exchange of a shared channel, for other programs."""
CANDIDATE = "@candidate"
"""What is addressed to `FLOW@candidate` is for the version of the app that is rolled out. It is that flow's all the
same: its inbox, its ledger, its dead letters."""


class Copy(NamedTuple):
    """One addressed copy of a message, to be staged as a row."""

    row: str
    message: Message
    flow: str
    generation: int = 0
    attempts: int = 0
    delay: float = 0.0
    staged: float = 0.0
    """When its row was staged, in seconds since the epoch; 0: just now."""

    @property
    def exchange(self) -> str:
        """The shared channel whose exchange it is for; empty for a flow's copy."""
        return self.flow.removeprefix(EXCHANGE) if self.flow.startswith(EXCHANGE) else ""


class Claim(NamedTuple):
    """What the inbox knows of a message that may run now."""

    attempts: int = 0
    suspect: bool = False
    """It may have killed its process, so it runs alone."""
    at: int = 0
    """Microseconds of the database's clock as it was made, which tell it from another worker's claim of the same
    message; 0 where it was only looked for."""


class Reopening(NamedTuple):
    """An inbox row set open again, expecting `generation` next."""

    identity: Identity
    generation: int
    attempts: int
    suspect: bool = False


class Letter(NamedTuple):
    """A dead letter: the delivery, why, and after how many attempts."""

    delivery: Delivery
    reason: str
    error: str
    stack: str
    attempts: int


class Receipt(NamedTuple):
    """What a transport says of a copy that it was given to carry away."""

    copy: Copy
    confirmed: bool
    reason: str = ""


class Pending(NamedTuple):
    """Messages that are not at their end: due or in work now, and waiting for a later time."""

    now: int
    later: int


class Tally(NamedTuple):
    """Counts of addressed copies, added to the ledger."""

    accepted: int = 0
    applied: int = 0
    dead: int = 0
    discarded: int = 0
    expired: int = 0
    unidentified: int = 0
    """Of the accepted ones, those that came without an id."""
    reused: int = 0
    """Duplicates that are none: their body is another one than that of the message that has their id."""


class Shared(NamedTuple):
    """A channel that other programs use too, and those of our flows that receive from it."""

    channel: str
    flows: Sequence[str]
    optional: bool
    """Whether its messages may go nowhere."""
