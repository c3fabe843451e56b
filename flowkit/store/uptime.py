"""Uptime: the periods in which apps gave at least their minimum service."""

from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND

OUTAGE_MICROSECONDS = 3_000_000
"""Microseconds without a ready worker's note after which an outage begins."""


class Uptime:
    """Implements ports.Uptime. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, app: str) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.up_anew, [(app, app, OUTAGE_MICROSECONDS)])
            unit.write(self._database.sql.up_still, [(app, OUTAGE_MICROSECONDS)])

    def read(self, app: str, seconds: float) -> list[tuple[float, float]]:
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.uptime, (app, app, int(seconds * MICROSECOND)))
        return [(float(since), float(until)) for since, until in rows]
