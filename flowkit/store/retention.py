"""Retention: what the inbox, the dead letters and the ledger forget, and when."""

from collections import defaultdict

from flowkit.ports import Retention, Tally
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND, names
from flowkit.store.unit import SqlUnit

BATCH = 1000
TERM_MICROSECONDS = 60_000_000


class Cleaner:
    """Removes in bounded batches; one elected worker of an app does it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gone: dict[str, int] = defaultdict(int)
        """Up to when nothing is left of some names, as far as this process knows: what was removed is in the way of who
        looks through it again, until the database has tidied up."""

        self._cleaned = 0
        """The database's time at the last cleaning."""

    def look_again(self) -> None:
        """Look through everything with the next cleaning."""
        self._gone.clear()

    def clean(self, policy: Retention, holder: str) -> int:
        """One batch of each kind, if `holder` is elected for its term. Returns the rows removed."""
        sql = self._database.sql
        with self._database.transaction() as unit:
            unit.begin()
            if not unit.read(sql.elect, (f"cleaner:{policy.app}", holder, TERM_MICROSECONDS)):
                return 0
            flows = names(policy.flows)
            now = int(unit.read(sql.now)[0][0])
            if now < self._cleaned:
                self.look_again()  # the clock was set back: what is new may be older than that
            self._cleaned = now
            retention = int(policy.inbox * MICROSECOND)
            # An accepted id is remembered longer than what the flows did with it: sent again, it is still known.
            ends = {
                flows: now - retention,
                names(f"channel:{one}" for one in policy.channels): now - 2 * retention,
                names(f"digest:{one}" for one in policy.channels): now - 2 * retention,
            }
            purged = {
                those: sorted(
                    changed for (changed,) in unit.read(sql.purge_inbox, (those, self._gone[those], end, BATCH))
                )
                for those, end in ends.items()
            }
            removed = sum(len(times) for times in purged.values())
            letters = unit.read(sql.expire_dead, (flows, int(policy.dead_letters * MICROSECOND), BATCH))
            tallies = {flow: Tally() for (flow, *_) in letters}
            for flow, _, _ in letters:
                tallies[flow] = tallies[flow]._replace(dead=tallies[flow].dead - 1, expired=tallies[flow].expired + 1)
            unit.write(sql.conclude, letters)
            unit.count(tallies)
            for expired in (sql.purge_objects, sql.purge_replies):
                removed += len(unit.read(expired, (policy.app, BATCH)))
            self._fold(unit)
        self._gone.update({those: times[-1] if times else ends[those] for those, times in purged.items()})
        self._database.dialect.tidy()
        return removed + len(letters)

    def _fold(self, unit: SqlUnit) -> None:
        """Add the counters of lanes whose worker is gone to the totals."""
        gone = unit.read(self._database.sql.fold, (BATCH,))
        totals: dict[str, Tally] = {}
        for flow, *counts in gone:
            totals[flow] = Tally(*(a + b for a, b in zip(totals.get(flow, Tally()), counts, strict=True)))
        unit.write(self._database.sql.count, [(flow, "", *totals[flow]) for flow in sorted(totals)])
