"""The unit of work: one transaction that brings messages to their outcomes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from flowkit.ports.delivery import Claim, Copy, Delivery, Identity, Letter, Reopening, Tally
from flowkit.ports.handler import Access


class Unit(Protocol):
    """A unit of work: one transaction on one connection. It begins with the first claim, or the first use that a
    handler makes of what it was given. What is written may wait for the commit, and fail there.

    Any call may raise StoreConflict or StoreUnavailable; the transaction is then gone.
    """

    opening: Callable[[], None] | None
    """Called once, when a handler's first use begins the transaction."""

    together: bool
    """Whether handlers' plain INSERTs may wait and go together. Whose is refused is then not known: the batch is run
    again, message by message."""

    waited: float
    """Seconds for which the beginning of the transaction waited."""

    settings: bool
    """Whether handlers change settings where nobody sees it, so that they are always put back."""

    alone: bool
    """Whether one message only runs in it. Else a statement raises Apart that leaves something which another message
    would meet: a setting, a role, a name."""

    def look(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        """Which of these could be claimed now, by a plain read outside any transaction. Decides nothing."""

    def claim(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        """Claim these in the inbox. Those missing from the answer are duplicates."""

    def holds(self, claims: Mapping[Identity, Claim]) -> bool:
        """Whether all of these very claims are in the inbox: the transaction that made them was committed."""

    def digests(self, deliveries: Sequence[Delivery]) -> dict[Identity, str]:
        """The digests with which these identities were claimed; empty where there was none."""

    def subscribers(self, channels: Collection[str]) -> Mapping[str, Sequence[str]]:
        """The flows subscribed to each of these channels."""

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""

    @property
    def shut(self) -> bool:
        """Whether this process itself has closed the connection: a handler did."""

    def check(self) -> None:
        """Raise TransactionEnded if a handler ended the transaction by the driver. Undoes what handlers did."""

    def access(self, careful: bool = False) -> Access:
        """The objects for the next handler. `careful`: in a savepoint, so that just it is undone when it fails."""

    def broken(self) -> BaseException | None:
        """Why the transaction cannot go on, by a local look; else None. TransactionEnded if somebody ended it."""

    def ended(self, error: BaseException) -> BaseException | None:
        """What ended the transaction, if a handler's error comes of that: Apart, StoreConflict, StoreUnavailable or
        TransactionEnded. None for a failure of the handler's own, be it of another database that it spoke to."""

    def flush(self) -> None:
        """Send what is pending to the database: the handlers' objects, and what was written."""

    def reopen(self, rows: Sequence[Reopening]) -> None:
        """Set these inbox rows open."""

    def bury(self, letters: Sequence[Letter]) -> None:
        """Set these inbox rows dead and write the dead letters."""

    def stage(self, copies: Sequence[Copy], lease: float = 0.0) -> None:
        """Write message rows: due after their delay, or born leased to the sender for `lease` seconds."""

    def remove(self, rows: Collection[tuple[str, int]]) -> None:
        """Remove message rows by (row, deliveries): those that still have that token."""

    def count(self, tallies: Mapping[str, Tally]) -> None:
        """Add to the ledger, by flow."""

    def witness(self) -> None:
        """Let the commit wait until what this unit saw is as durable as what it wrote: others' commits can be seen
        before every standby that they wait for has them."""

    def commit(self) -> None:
        """Commit. Raises CommitUnknown, StoreConflict, TransactionEnded, or the database's own refusal."""
