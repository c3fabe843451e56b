"""The parts of the store for messages: queue, subscribers, answers, ledger, suspects, retention. Every call blocks."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from flowkit.ports.delivery import Delivery, Identity, Pending
from flowkit.ports.handler import Asked


class Queue(Protocol):
    """The message rows. A lease of a row is (row, deliveries): calls with an older number of deliveries do nothing."""

    def lease(self, flow: str, limit: int, worker: str, seconds: float) -> list[Delivery]:
        """Lease up to `limit` due rows of a flow to a worker, for `seconds`, in a short transaction of its own. The row
        whose body brings their size to BATCH_BYTES is the last one."""

    def renew(self, rows: Collection[tuple[str, int]], seconds: float) -> None:
        """Extend the leases of these rows to `seconds` from now."""

    def release(self, rows: Collection[tuple[str, int]]) -> None:
        """Make these leased rows due now."""

    def park(self, rows: Mapping[tuple[str, int], str], seconds: float) -> None:
        """Make these rows due again after `seconds`. Records for each the reason why it was not sent."""

    def unpark(self, flows: Collection[str]) -> None:
        """Make the parked rows of these flows due now."""

    def due(self, flows: Collection[str] | None = None) -> set[str]:
        """Return those of these flows, or of all subscribed flows, that have a due row."""


class Subscribers(Protocol):
    """The subscribed flows, and the apps that only publish."""

    def add(self, subscriptions: Mapping[str, str]) -> None:
        """Record flow -> channel. A subscription stays until a command removes it."""

    def channels(self) -> Mapping[str, str]:
        """Return flow -> channel, of every app."""

    def announce(self, app: str) -> None:
        """Record that an app without flows publishes here. No other program may use its name from then on."""

    def publishers(self) -> Sequence[str]:
        """Return the announced apps."""


class Answers(Protocol):
    """Replies to requests, and states of messages, for clients."""

    def replies(self, app: str, requests: Collection[Asked]) -> Mapping[Asked, bytes]:
        """Return request -> reply, as JSON. A request without a reply has no entry."""

    def states(self, identities: Collection[Identity]) -> Mapping[Identity, str]:
        """Return identity -> accepted, applied or dead. A message that has not reached its flow yet has no entry."""


class Ledger(Protocol):
    """The numbers of pending messages."""

    def pending(self, flows: Collection[str]) -> Pending:
        """Return how many messages of these flows are pending now, and later."""

    def unfinished(self, flows: Collection[str]) -> int:
        """Return how many messages of these flows the ledger counts as accepted but not ended."""


class Suspects(Protocol):
    """Messages that may have killed the worker that ran them."""

    def charge(self, identity: Identity, worker: str, late: bool) -> None:
        """Make this message a suspect: a worker died with it in flight. The death counts as an attempt if the message
        ran alone or was past its deadline (`late`), unless another worker that runs it alone has counted it already."""

    def begin_solo(self, suspect: Delivery, worker: str) -> None:
        """Record that this worker is about to run a suspect alone. If a dead worker had begun to run it alone, that run
        counts as an attempt. Call it before the run; a second call changes nothing."""

    def end_solo(self, identity: Identity, worker: str) -> None:
        """Record that this worker gives the message back. Its run alone does not count."""


class Retention(NamedTuple):
    """How long an app keeps inbox rows and dead letters, in seconds."""

    app: str
    flows: Collection[str]
    channels: Collection[str]
    inbox: float
    dead_letters: float


class Cleaner(Protocol):
    """Removes expired rows."""

    def clean(self, policy: Retention, holder: str) -> int:
        """Remove one bounded batch of expired rows, if `holder` is the elected cleaner. Returns the number of rows."""
