"""The unit of work: one transaction that brings messages to their outcomes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from flowkit.ports.delivery import Claim, Copy, Delivery, Identity, Letter, Reopening, Tally
from flowkit.ports.handler import Access


class Unit(Protocol):
    """A unit of work: one transaction on one connection. It begins with the first claim, or with the handler's first
    use of an injected object. Writes may be sent as late as the commit, and fail there.

    A method blocks unless it says otherwise, and may raise StoreConflict or StoreUnavailable; the transaction is then
    lost. Reading an attribute does not block.
    """

    opening: Callable[[], None] | None
    """Called once, when a handler's first use begins the transaction."""

    together: bool
    """Whether plain INSERTs of several handlers may be sent together. If the database refuses one of them, nobody knows
    whose: the batch then runs again, message by message."""

    waited: float
    """Seconds that the transaction waited to begin."""

    settings: bool
    """Whether handlers may change settings unseen, so that every handler's settings are restored."""

    alone: bool
    """Whether the unit has a single message. Otherwise a statement that leaves a setting, a role or a name behind for
    the next message raises Apart."""

    def look(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        """Return the claims that could be made now, by a plain read outside any transaction. Claims nothing."""

    def claim(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        """Claim these in the inbox. Identities that the result lacks are duplicates."""

    def holds(self, claims: Mapping[Identity, Claim]) -> bool:
        """Return whether the inbox has all of these claims, which proves that their transaction was committed."""

    def digests(self, deliveries: Sequence[Delivery]) -> dict[Identity, str]:
        """Return the digests with which these identities were claimed; empty for a claim without one."""

    def subscribers(self, channels: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Return channel -> the flows that are subscribed to it."""

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""

    @property
    def shut(self) -> bool:
        """Whether this process itself has closed the connection: a handler did."""

    def check(self) -> None:
        """Raise TransactionEnded, and undo the handlers' writes, if a handler ended the transaction by the driver."""

    def access(self, careful: bool = False) -> Access:
        """Return the access of the next handler. `careful`: in a savepoint, so that its failure undoes only itself."""

    def broken(self) -> BaseException | None:
        """Return why the transaction cannot continue, or None. TransactionEnded: a handler ended it. Does not block."""

    def ended(self, error: BaseException) -> BaseException | None:
        """Return the Apart, StoreConflict, StoreUnavailable or TransactionEnded behind a handler's error. None for a
        failure of the handler's own, such as one of another database that it uses."""

    def flush(self) -> None:
        """Send pending writes to the database, those of handlers included."""

    def reopen(self, rows: Sequence[Reopening]) -> None:
        """Set these inbox rows to open."""

    def bury(self, letters: Sequence[Letter]) -> None:
        """Set the inbox rows of these letters to dead, and write the dead letters."""

    def stage(self, copies: Sequence[Copy], lease: float = 0.0) -> None:
        """Write message rows that are due after their delay, or leased to the sender for `lease` seconds."""

    def remove(self, rows: Collection[tuple[str, int]]) -> None:
        """Remove message rows by (row, deliveries). A row with another number of deliveries stays."""

    def count(self, tallies: Mapping[str, Tally]) -> None:
        """Add these numbers to the ledger, by flow."""

    def witness(self) -> None:
        """Make the commit wait until all data that this unit read is as durable as its writes. Other transactions
        become visible before every standby that they wait for has them."""

    def commit(self) -> None:
        """Commit. Raises CommitUnknown, StoreConflict, TransactionEnded, or the database's own refusal."""
