"""Retention: removes old rows of the inbox, dead letters, objects and replies, and folds counters."""

from collections import defaultdict

from flowkit.ports import Retention, Tally
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND, names
from flowkit.store.unit import SqlUnit

BATCH = 1000
TERM_MICROSECONDS = 60_000_000


class Cleaner:
    """Removes expired rows in bounded steps. One elected worker of an app does it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gone: dict[str, int] = defaultdict(int)
        """Names -> the time up to which this process has removed all their rows. A scan of older times would be slow:
        it meets the removed rows until the database has vacuumed them."""

        self._cleaned = 0
        """The database's time at the last cleaning."""

    def look_again(self) -> None:
        """Let the next cleaning scan all times."""
        self._gone.clear()

    def clean(self, policy: Retention, holder: str) -> int:
        """Remove one step of each kind, if `holder` is elected for its term. Returns the number of removed rows."""
        sql = self._database.sql
        with self._database.transaction() as unit:
            unit.begin()
            if not unit.read(sql.elect, (f"cleaner:{policy.app}", holder, TERM_MICROSECONDS)):
                return 0
            flows = names(policy.flows)
            now = int(unit.read(sql.now)[0][0])
            if now < self._cleaned:
                self.look_again()  # the clock was set back: new rows may have older times than `_gone`
            self._cleaned = now
            retention = int(policy.inbox * MICROSECOND)
            # Accepted ids outlive the inbox rows of the flows: a message that is sent again is still recognised.
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
        """Add the counters of dead workers' lanes to the totals."""
        gone = unit.read(self._database.sql.fold, (BATCH,))
        totals: dict[str, Tally] = {}
        for flow, *counts in gone:
            totals[flow] = Tally(*(a + b for a, b in zip(totals.get(flow, Tally()), counts, strict=True)))
        unit.write(self._database.sql.count, [(flow, "", *totals[flow]) for flow in sorted(totals)])
