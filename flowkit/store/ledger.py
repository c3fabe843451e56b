"""The ledger: accepted = applied + dead + discarded + expired + pending, for each flow.

The left side and the first four terms are counters, written in the transactions that they count. Pending is counted
from the rows, so that the equation can fail.
"""

from collections.abc import Collection
from typing import NamedTuple

from flowkit.ports import Figures, Pending
from flowkit.store.database import Database


class Balance(NamedTuple):
    """The ledger of one flow, in addressed copies."""

    accepted: int = 0
    applied: int = 0
    dead: int = 0
    discarded: int = 0
    expired: int = 0
    pending: int = 0
    letters: int = 0
    """Existing dead letters; must equal `dead`."""
    unidentified: int = 0
    """Accepted messages that came without an id: they are applied at least once."""
    reused: int = 0
    """Duplicates whose body differs from that of the first message with their id. They changed nothing."""

    @property
    def ended(self) -> int:
        """Copies that have ended."""
        return self.applied + self.dead + self.discarded + self.expired

    @property
    def balanced(self) -> bool:
        return self.accepted == self.ended + self.pending and self.dead == self.letters


class Backlog(NamedTuple):
    """The backlog of one flow, in message rows. `oldest` is the age of the oldest, in seconds; None without rows."""

    due: int
    leased: int
    delayed: int
    parked: int
    oldest: float | None


class WorkerRow(NamedTuple):
    """A worker as it last reported. `started` and `silent` are the seconds since its start and its last heartbeat."""

    id: str
    app: str
    host: str
    pid: int
    group: str
    site: str
    version: str
    state: str
    epoch: int
    figures: Figures
    started: float
    silent: float


class Ledger:
    """Reads the state of a store. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def balances(self) -> dict[str, Balance]:
        """Return flow -> its ledger, in one snapshot."""
        with self._database.unit("") as unit:
            return {flow: Balance(*map(int, rest)) for flow, *rest in unit.read(self._database.sql.balances)}

    def backlog(self) -> dict[str, Backlog]:
        """Return flow -> its backlog."""
        with self._database.unit("") as unit:
            return {
                flow: Backlog(int(due), int(leased), int(delayed), int(parked), None if age is None else age / 1e6)
                for flow, due, leased, delayed, parked, age in unit.read(self._database.sql.backlog)
            }

    def workers(self) -> list[WorkerRow]:
        """Return the workers of the fleet."""
        with self._database.unit("") as unit:
            return [
                WorkerRow._make((*who, Figures(handled, failed, p99 / 1e6), started / 1e6, silent / 1e6))
                for *who, handled, failed, p99, started, silent in unit.read(self._database.sql.fleet)
            ]

    def pending(self, flows: Collection[str]) -> Pending:
        mine = [one for flow, one in self.backlog().items() if flow in flows]
        return Pending(sum(one.due + one.leased for one in mine), sum(one.delayed + one.parked for one in mine))

    def unfinished(self, flows: Collection[str]) -> int:
        return sum(one.accepted - one.ended for flow, one in self.balances().items() if flow in flows)
