"""The database's clock: notices that it was set, and moves the times that depend on it."""

import logging
from typing import NamedTuple

from flowkit.store.database import Database

STEP_MICROSECONDS = 2_000_000
"""A clock further than this from the expected time was set. Heartbeats keep the mark fresher than this."""
MOVE_SECONDS = 120.0
"""The deadline, in seconds, of the transaction that moves times: it may change millions of rows."""
_log = logging.getLogger("flowkit.store")


class Look(NamedTuple):
    """A reading of the database's time, in microseconds, and the monotonic times of question and answer, in seconds."""

    now: int
    asked: float
    answered: float


class Hands:
    """Compares the database's clock with the expected time.

    The store keeps the latest time that a heartbeat saw: the mark. A clock that shows less was set back. The first
    process that notices sets the mark to the present time, and moves the waiting rows in the same transaction. The
    others find the new mark. A process that has read the clock before computes the expected time by its monotonic
    clock; any other process takes the mark.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._before: Look | None = None

    def look(self) -> None:
        """Read the clock, and handle a step of it. Each heartbeat calls this after it has updated the mark. Blocks."""
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
                    "the clock of the database went forward by %.0f s more than time did, or this machine slept: "
                    "waiting messages are due earlier by that; nothing takes effect twice", (now - should) / 1e6
                )  # fmt: skip
            elif mark is not None and not mark <= should <= mark + passed + STEP_MICROSECONDS:
                should = mark  # the clock was set several times since
        if mark is not None and mark - now > STEP_MICROSECONDS:
            self._set_back(mark, should, since)  # the last reading before the step counts until this has succeeded
        else:
            self._before = here

    def _set_back(self, mark: int, should: int, since: int) -> None:
        """Move waiting rows after the clock was set back. `should` is the expected time. The clock was set at `since`
        or later, in its new time. All three are in microseconds.

        Rows that were due, or were staged by the old time, move along. A row that was staged earlier, by either time,
        and was not due yet, stays: late is better than early. A lease that ends before the mark stays too: it may be
        new.
        """
        sql = self._database.sql
        with self._database.unit("", deadline=MOVE_SECONDS, fenced=False) as unit:
            unit.begin()
            found = unit.read(sql.set_mark, (mark,))
            if not found:
                return  # another process was faster
            now = found[0][0]
            by = should - now
            unit.write(sql.move_messages, [(now, by, mark, since, should)])
            unit.write(sql.move_leases, [(by, mark)])
            for statement in (sql.move_workers, sql.move_uptime, sql.move_rollouts):
                unit.write(statement, [(now, by)])
            unit.commit()
        self._database.notify(())
        _log.warning("the clock of the database was set back by %.0f s; messages that were due stay due", by / 1e6)
