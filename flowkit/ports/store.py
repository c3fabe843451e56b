"""The store: the database, with a unit of work for each batch, and a port for each kind of record."""

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
    """Type -> its purpose: parameters by which handlers write in the unit of work."""
    session: type
    """The type of session that `UnitOfWork.run` passes to its function."""
    serial: bool
    """Whether there is one writer at a time (SQLite): a slow handler must not hold the transaction open."""
    fence: Fence | None
    """The lease that each commit of this process requires; a commit without it raises Fenced. None: no lease."""
    version: str
    """The version of the app in this process, which its dead letters record."""

    def unit(self, flow: str, deadline: float = 60.0, lane: str = "") -> AbstractContextManager[Unit]:
        """Open a unit of work for a flow. The end of the block without `commit` rolls it back. `deadline`: seconds."""

    def join(self, session: object, lane: str) -> Unit:
        """Return a unit inside the caller's own transaction, which the caller commits. Raises ConfigError for a session
        of another database."""

    def now(self) -> float:
        """Return the database's time, in seconds since the epoch. Blocks."""

    def started(self) -> str:
        """Return a text that changes when the database's server restarts. Blocks; raises StoreUnavailable."""

    def key(self) -> bytes:
        """Return the secret that all instances of this store share. Raises ConfigError if there is none yet."""

    def check_place(self) -> None:
        """Raise StoreLost if the opened database was removed or replaced. Does not wait. A commit to such a database
        never succeeds either."""

    def classify(self, error: BaseException) -> BaseException:
        """Return the StoreConflict or StoreUnavailable that a database error means, or else the error itself."""

    def wait(self, seconds: float) -> set[str] | None:
        """Block until another transaction may have written rows, at most `seconds`. Returns the flows that a
        notification names; None if they are unknown."""

    def notify(self, flows: Collection[str]) -> None:
        """Wake the workers that wait for rows of these flows, in all processes."""

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
