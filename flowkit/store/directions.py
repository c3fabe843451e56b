"""Directions: what operators set for flows and apps, and whether an app gives its service."""

from collections.abc import Collection

from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND

QUIET_MICROSECONDS = 5_000_000
"""A worker that has not told so for longer is not taken to be ready."""
OUTAGE_MICROSECONDS = 3_000_000
"""No ready worker told so for longer than this: an outage."""


class Directions:
    """The directions of a store. Every call blocks; any thread may call it. See ports.Store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, what: str, names: Collection[str], value: int | None) -> None:
        with self._database.transaction() as unit:
            if value is None:
                unit.write(self._database.sql.leave_alone, [(what, name) for name in sorted(names)])
            else:
                unit.write(self._database.sql.direct, [(what, name, value) for name in sorted(names)])

    def read(self) -> dict[tuple[str, str], int]:
        with self._database.unit("") as unit:
            rows = unit.read("SELECT what, name, value FROM flowkit_directions")
        return {(what, name): value for what, name, value in rows}

    def ready(self, app: str) -> int:
        with self._database.unit("") as unit:
            return int(unit.read(self._database.sql.ready, (app, QUIET_MICROSECONDS))[0][0])

    def note_up(self, app: str) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.up_anew, [(app, app, OUTAGE_MICROSECONDS)])
            unit.write(self._database.sql.up_still, [(app, OUTAGE_MICROSECONDS)])

    def uptime(self, app: str, seconds: float) -> list[tuple[float, float]]:
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.uptime, (app, app, int(seconds * MICROSECOND)))
        return [(float(since), float(until)) for since, until in rows]
