"""The nouns of the store that hold messages: queue, subscribers, answers, ledger, suspects, retention."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from flowkit.ports.delivery import Delivery, Identity, Pending
from flowkit.ports.handler import Asked


class Queue(Protocol):
    """Message rows, taken under leases."""

    def lease(self, flow: str, limit: int, worker: str, seconds: float) -> list[Delivery]:
        """Take up to `limit` due rows of a flow, in a short committed transaction of its own: none beyond the one whose
        body brings them to BATCH_BYTES."""

    def renew(self, rows: Collection[tuple[str, int]], seconds: float) -> None:
        """Hold these leased rows for `seconds` more."""

    def release(self, rows: Collection[tuple[str, int]]) -> None:
        """Make these leased rows due now."""

    def park(self, rows: Mapping[tuple[str, int], str], seconds: float) -> None:
        """Make these rows due again after `seconds`, with the reason that kept them."""

    def unpark(self, flows: Collection[str]) -> None:
        """Make the parked rows of these flows due now."""

    def due(self, flows: Collection[str] | None = None) -> set[str]:
        """Which of these flows, or of all that are subscribed, have a due row."""


class Subscribers(Protocol):
    """The flows that are subscribed, and the apps that only publish."""

    def add(self, subscriptions: Mapping[str, str]) -> None:
        """Record flow -> channel. They stay until they are removed by command."""

    def channels(self) -> Mapping[str, str]:
        """flow -> channel, of every app."""

    def announce(self, app: str) -> None:
        """Record that an app without flows publishes here: no other program may then have its name."""

    def publishers(self) -> Sequence[str]:
        """The apps that were announced."""


class Answers(Protocol):
    """Replies to requests, and states of messages, for clients."""

    def replies(self, app: str, requests: Collection[Asked]) -> Mapping[Asked, bytes]:
        """The replies to these requests of an app, as JSON. A request that has none has no entry."""

    def states(self, identities: Collection[Identity]) -> Mapping[Identity, str]:
        """What the inbox knows of these: accepted, applied or dead. What did not come to a flow yet has no entry."""


class Ledger(Protocol):
    """Counts of messages that are not at their end."""

    def pending(self, flows: Collection[str]) -> Pending:
        """How many messages of these flows are not at their end."""

    def unfinished(self, flows: Collection[str]) -> int:
        """How many messages of these flows were accepted and are not at their end, by the ledger."""


class Suspects(Protocol):
    """Messages that may have killed the worker that ran them."""

    def charge(self, identity: Identity, worker: str, late: bool) -> None:
        """A worker died with this message in flight: make it a suspect. It was an attempt if the message ran alone, or
        was past its deadline (`late`); unless another worker runs it alone since then, and counted that."""

    def begin_solo(self, suspect: Delivery, worker: str) -> None:
        """A suspect is about to run alone in this worker. If a worker that is dead had begun to run it alone, that run
        was an attempt. To be called before the run; a second call changes nothing."""

    def end_solo(self, identity: Identity, worker: str) -> None:
        """The run alone in this worker is over and does not count: the message is given back."""


class Retention(NamedTuple):
    """What an app keeps for how long, in seconds."""

    app: str
    flows: Collection[str]
    channels: Collection[str]
    inbox: float
    dead_letters: float


class Cleaner(Protocol):
    """Removes what retention keeps no longer."""

    def clean(self, policy: Retention, holder: str) -> int:
        """Remove what its retention ended, in one bounded batch, if `holder` is elected. Returns rows removed."""
