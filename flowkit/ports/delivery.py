"""Values that describe a message on its way: deliveries, outcomes, and the records of stores and transports."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowkit.message import Message

Identity = tuple[str, str, str]
"""(flow, source, id). The store commits the effects of each identity at most once."""


class Delivery(NamedTuple):
    """A copy that one lane has received and has not settled."""

    message: Message
    flow: str
    generation: int = 0
    """How often it was sent again on purpose. The inbox row refuses generations below the one that it expects."""
    attempts: int = 0
    """Failed attempts when it was staged. If there is an inbox row, its number is newer."""
    deliveries: int = 1
    """How often it was received. With `row` this is the token of the lease: a stale token changes nothing."""
    staged: float = 0.0
    """When this generation was staged, in seconds since the epoch, by the database's clock."""
    row: str | None = None
    """Its message row, if the rows are the queue. The unit of work removes that row."""
    tag: Any = None
    """The handle by which the transport settles it."""
    foreign: bool = False
    """Whether another program sent it. The ledger then counts it when the store first records it."""
    unidentified: bool = False
    """Whether it came without an id. It gets a new id each time that it arrives."""
    digest: str = ""
    """The digest of its body, if FlowKit did not choose its id: another message may then have the same id."""
    refused: str = ""
    """Why it is not the message that it claims to be; else empty. A refused message is foreign, and no handler runs."""

    @property
    def identity(self) -> Identity:
        return self.flow, self.message.source, self.message.id


class Done(NamedTuple):
    """The handler's effects, the inbox row and the outgoing messages are committed."""


class Duplicate(NamedTuple):
    """The message was already applied, is dead, or was sent again since. Nothing is to be done."""


class Retried(NamedTuple):
    """The attempt failed. A message row waits `after` seconds for the next one."""

    after: float
    error: BaseException


class Dead(NamedTuple):
    """The message is a dead letter."""

    reason: str
    error: BaseException | None = None


class Deferred(NamedTuple):
    """No attempt: this version cannot read the message. A row waits `after` seconds for a version that can."""

    after: float
    error: BaseException


REFUSED = "refused"
"""The reason of a dead letter that is not the message that it claims to be."""
Outcome = Done | Duplicate | Retried | Dead | Deferred
EXCHANGE = "exchange:"
"""A copy for `exchange:CHANNEL` goes to the exchange of a shared channel, for other programs."""
CANDIDATE = "@candidate"
"""A copy for `FLOW@candidate` is for the candidate of a rollout. Inbox, ledger and dead letters count it for `FLOW`."""


class Copy(NamedTuple):
    """One addressed copy of a message, to be staged as a row."""

    row: str
    message: Message
    flow: str
    generation: int = 0
    attempts: int = 0
    delay: float = 0.0
    staged: float = 0.0
    """When its row was staged, in seconds since the epoch; 0 for now."""

    @property
    def exchange(self) -> str:
        """The shared channel whose exchange gets this copy; empty if it is for a flow."""
        return self.flow.removeprefix(EXCHANGE) if self.flow.startswith(EXCHANGE) else ""


class Claim(NamedTuple):
    """The inbox row of a message that may run now."""

    attempts: int = 0
    suspect: bool = False
    """Whether the message may have killed its worker, so that it runs alone."""
    at: int = 0
    """When it was made, in microseconds of the database's clock. It tells the claim from another worker's claim of the
    same message. 0 after a mere look."""


class Reopening(NamedTuple):
    """An inbox row that is set to open, and expects `generation` next."""

    identity: Identity
    generation: int
    attempts: int
    suspect: bool = False


class Letter(NamedTuple):
    """A dead letter: the delivery, the reason, the error with its stack, and the number of attempts."""

    delivery: Delivery
    reason: str
    error: str
    stack: str
    attempts: int


class Receipt(NamedTuple):
    """The answer of a transport for one copy that it was to send; `reason` says why it is not confirmed."""

    copy: Copy
    confirmed: bool
    reason: str = ""


class Pending(NamedTuple):
    """Numbers of pending messages: due or in flight now, and delayed until later."""

    now: int
    later: int


class Tally(NamedTuple):
    """Numbers of copies to add to the ledger."""

    accepted: int = 0
    applied: int = 0
    dead: int = 0
    discarded: int = 0
    expired: int = 0
    unidentified: int = 0
    """The accepted copies that came without an id."""
    reused: int = 0
    """Copies that look like duplicates, but whose body differs from that of the message with the same id."""


class Shared(NamedTuple):
    """A channel that other programs use too, and the app's flows that receive from it."""

    channel: str
    flows: Sequence[str]
    optional: bool
    """Whether a message without a receiver is no error."""
