"""The database's clock: noticing that it was set, and moving what waits by it."""

import logging
from typing import NamedTuple

from flowkit.store.database import Database

STEP_MICROSECONDS = 2_000_000
"""A clock that is further than this from where it should be was set. Heartbeats keep the mark as fresh as this."""
MOVE_SECONDS = 120.0
"""The deadline of the transaction that moves what waits: that may be millions of rows."""
_log = logging.getLogger("flowkit.store")


class Look(NamedTuple):
    """What a process saw: the database's time in microseconds, asked and answered at times of a monotonic clock."""

    now: int
    asked: float
    answered: float


class Hands:
    """Where the hands of the database's clock should be.

    The store keeps the latest time that a heartbeat saw (the mark). A clock that shows less was set back: the process
    that sees it first sets the mark to the present time, and in the same transaction moves what waits. Others find the
    new mark. A process that has looked before knows by its monotonic clock what time it should be; any other process
    takes the mark.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._before: Look | None = None

    def look(self) -> None:
        """See where they are. Called with each heartbeat, after that has kept the mark up. Blocks."""
        monotonic = self._database.dialect.monotonic
        asked = monotonic()
        with self._database.unit("") as unit:
            now, mark = unit.read(self._database.sql.mark)[0]
        before, here = self._before, Look(now, asked, monotonic())
        should, since = mark, 0
        if before is not None:
            passed = int((asked - before.answered) * 1e6)
            should, since = before.now + passed, now - int((here.answered - before.asked) * 1e6)
            if should < now - STEP_MICROSECONDS:
                _log.warning(
                    "the clock of the database went forward by %.0f s more than time did, or this machine slept: what "
                    "waits is due so much earlier; nothing takes effect twice", (now - should) / 1e6
                )  # fmt: skip
            elif mark is not None and not mark <= should <= mark + passed + STEP_MICROSECONDS:
                should = mark  # it was set several times since
        if mark is not None and mark - now > STEP_MICROSECONDS:
            self._set_back(mark, should, since)  # the last look before the step counts until that is done
        else:
            self._before = here

    def _set_back(self, mark: int, should: int, since: int) -> None:
        """It should be later than it is. The clock was set not before `since`, in its new time.

        What was due, or staged by the old time, moves along. A row that was staged earlier, by whichever time, and was
        not due yet, stays: it comes late rather than early. So does a lease that ends before the mark: it may be new.
        """
        sql = self._database.sql
        with self._database.unit("", deadline=MOVE_SECONDS, fenced=False) as unit:
            unit.begin()
            found = unit.read(sql.set_mark, (mark,))
            if not found:
                return  # somebody else was faster
            now = found[0][0]
            by = should - now
            unit.write(sql.move_messages, [(now, by, mark, since, should)])
            unit.write(sql.move_leases, [(by, mark)])
            for statement in (sql.move_workers, sql.move_uptime, sql.move_rollouts):
                unit.write(statement, [(now, by)])
            unit.commit()
        self._database.notify(())
        _log.warning("the clock of the database was set back by %.0f s: what was due stays due", by / 1e6)
