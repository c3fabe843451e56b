"""Directions: what operators direct flows and apps to while they run."""

from collections.abc import Collection

from flowkit.store.database import Database


class Directions:
    """Implements ports.Directions. Every call blocks; any thread may call it."""

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
