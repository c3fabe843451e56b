"""The fleet: finds out which workers live, and frees the leases of dead ones."""

import logging

from flowkit.ports import Figures, WorkerInfo
from flowkit.store.clock import Hands
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND

SILENT_MICROSECONDS = 120_000_000
"""Microseconds without a heartbeat after which a worker without a lock counts as dead. Its leases expire earlier."""
QUIET_MICROSECONDS = 5_000_000
"""Microseconds without a heartbeat after which a worker does not count as ready."""
_log = logging.getLogger("flowkit.store")


class Fleet:
    """The workers of a store. Each holds a lock that its death frees; the others then free its leases at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._members: dict[str, WorkerInfo] = {}
        """The workers of this process."""
        self._hands = Hands(database)

    def join(self, worker: WorkerInfo, epoch: int = 0) -> None:
        self._members[worker.id] = worker
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.first_mark, [()])
        self._write(worker, "starting", epoch, Figures())

    def beat(self, worker: str, state: str, epoch: int = 0, figures: Figures | None = None) -> None:
        # This writes the row again if others removed it because the lock was free for a moment.
        self._write(self._members[worker], state, epoch, figures or Figures())
        self._hands.look()
        with self._database.unit("") as unit:
            others = unit.read(self._database.sql.others, (SILENT_MICROSECONDS, worker))
        for other, is_locked, is_silent in others:
            if self._ended(other, is_locked, is_silent):
                _log.warning("worker %s is gone; its messages are taken over", other)
                self.leave(other)

    def is_gone(self, worker: str) -> bool:
        """Whether a worker is dead or has left. Blocks."""
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.member, (SILENT_MICROSECONDS, worker))
        return all(self._ended(worker, *row) for row in rows)

    def is_staffed(self, app: str) -> bool:
        """Whether any worker of an app lives. Blocks."""
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.crew, (SILENT_MICROSECONDS, app))
        return not all(self._ended(*row) for row in rows)

    def members(self) -> set[str]:
        with self._database.unit("") as unit:
            return {worker for worker, *_ in unit.read(self._database.sql.fleet)}

    def ready(self, app: str) -> int:
        with self._database.unit("") as unit:
            return int(unit.read(self._database.sql.ready, (app, QUIET_MICROSECONDS))[0][0])

    def _ended(self, worker: str, is_locked: int, is_silent: int) -> bool:
        """Whether a worker is dead: by its lock or, if others cannot rely on that, by its missing heartbeats."""
        return self._database.dialect.gone(worker) if is_locked else bool(is_silent)

    def _write(self, worker: WorkerInfo, state: str, epoch: int, figures: Figures) -> None:
        locked = self._database.dialect.hold(worker.id)
        with self._database.transaction(fenced=False) as unit:
            handled, failed, p99 = figures
            row = (*worker, state, epoch, handled, failed, int(p99 * MICROSECOND), int(locked))
            unit.write(self._database.sql.join, [row])
            unit.write(self._database.sql.keep_mark, [()])

    def leave(self, worker: str) -> None:
        """Free the leases of a worker, the cleaner's included, and remove it from the fleet. Blocks."""
        sql = self._database.sql
        with self._database.transaction(fenced=False) as unit:
            unit.write(sql.hand_over, [(worker,)])
            unit.write(sql.free, [(worker,)])
            unit.write(sql.leave, [(worker,)])
        self._members.pop(worker, None)
        self._database.dialect.forget(worker)
        self._database.notify(())
