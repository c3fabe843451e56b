"""The store: the database, with a unit of work for each batch and a noun for each thing that it holds."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from flowkit.ports.fleet import Directions, Fence, Fleet, Groups, Rollouts, Uptime
from flowkit.ports.messages import Answers, Cleaner, Ledger, Queue, Subscribers, Suspects
from flowkit.ports.unit import Unit


class Schema(Protocol):
    """The tables."""

    def create_tables(self, metadata: object) -> None:
        """Create the app's own tables, where this store does so; elsewhere migrations are the user's.

        Raises StoreConflict, or StoreUnavailable.
        """


class Store(Protocol):
    """The database: inbox, message rows, dead letters, subscriptions, workers, ledger."""

    injects: Mapping[type, str]
    """Types that handlers may ask for to write in the unit of work, and what they are for."""
    session: type
    """The one of them that `UnitOfWork.run` gives."""
    serial: bool
    """One writer at a time (SQLite): a handler that is slow must not hold the transaction open."""
    fence: Fence | None
    """What this process commits from now on counts only while this holds; else the commit raises Fenced."""
    version: str
    """Which version of its app this process runs: its dead letters say so."""

    def unit(self, flow: str, deadline: float = 60.0, lane: str = "") -> AbstractContextManager[Unit]:
        """A unit of work for a flow. Leaving it without commit rolls back."""

    def join(self, session: object, lane: str) -> Unit:
        """A unit inside the caller's own transaction, which the caller commits. Raises ConfigError elsewhere."""

    def now(self) -> float:
        """The database's time, in seconds since the epoch."""

    def started(self) -> str:
        """Since when the database's server runs: another answer after a restart. Raises StoreUnavailable."""

    def key(self) -> bytes:
        """The secret of this store, which all its instances know. Raises ConfigError where it has none yet."""

    def check_place(self) -> None:
        """Raise StoreLost if the database that this process has opened was removed or replaced. Does not wait.
        A commit never succeeds there either."""

    def classify(self, error: BaseException) -> BaseException:
        """The StoreConflict or StoreUnavailable that a database error means; else the error itself."""

    def wait(self, seconds: float) -> set[str] | None:
        """Block until another transaction may have written rows, at most so long. The flows told; None: unknown."""

    def notify(self, flows: Collection[str]) -> None:
        """Wake those who wait for rows of these flows, in this process and in others."""

    def close(self) -> None:
        """Release every connection."""

    @property
    def schema(self) -> Schema: ...

    @property
    def queue(self) -> Queue: ...

    @property
    def subscribers(self) -> Subscribers: ...

    @property
    def answers(self) -> Answers: ...

    @property
    def directions(self) -> Directions: ...

    @property
    def uptime(self) -> Uptime: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def groups(self) -> Groups: ...

    @property
    def fleet(self) -> Fleet: ...

    @property
    def suspects(self) -> Suspects: ...

    @property
    def rollouts(self) -> Rollouts: ...

    @property
    def retention(self) -> Cleaner: ...
