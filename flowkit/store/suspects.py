"""Suspects: messages that may have killed their worker."""

from flowkit.ports import Delivery, Identity
from flowkit.store.database import Database
from flowkit.store.fleet import Fleet


class Suspects:
    """Implements ports.Suspects. Every call blocks; any thread may call it."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet

    def charge(self, identity: Identity, worker: str, late: bool) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.charge, [(int(late), *identity, worker, worker)])

    def begin_solo(self, suspect: Delivery, worker: str) -> None:
        with self._database.transaction() as unit:
            before = [one for (one,) in unit.read(self._database.sql.solo, suspect.identity) if one != worker]
            dead = before[0] if before and self._fleet.is_gone(before[0]) else None
            unit.write(
                self._database.sql.begin_solo, [(*suspect.identity, suspect.generation, suspect.attempts, worker, dead)]
            )

    def end_solo(self, identity: Identity, worker: str) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.end_solo, [(*identity, worker)])
