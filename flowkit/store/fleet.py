"""The fleet: which workers live, and taking over from those that do not."""

import logging
from typing import TYPE_CHECKING

from flowkit.ports import Figures, WorkerInfo
from flowkit.store.clock import Hands
from flowkit.store.encoding import MICROSECOND

if TYPE_CHECKING:
    from flowkit.store.sql import SqlStore

SILENT_MICROSECONDS = 120_000_000
"""A worker without a liveness lock counts as gone after this silence. Its leases ended long before."""
_log = logging.getLogger("flowkit.store")


class Fleet:
    """The workers of a store. Each holds a lock that its death frees; survivors then free its leases at once."""

    def __init__(self, store: "SqlStore") -> None:
        self._store = store
        self._members: dict[str, WorkerInfo] = {}
        """The workers of this process."""
        self._hands = Hands(store)

    def join(self, worker: WorkerInfo, epoch: int) -> None:
        self._members[worker.id] = worker
        with self._store.transaction(fenced=False) as unit:
            unit.write(self._store.sql.first_mark, [()])
        self._write(worker, "starting", epoch, Figures())

    def beat(self, worker: str, state: str, epoch: int, figures: Figures) -> None:
        # A row that others removed, because its lock was free for a moment, is there again.
        self._write(self._members[worker], state, epoch, figures)
        self._hands.look()
        with self._store.unit("") as unit:
            others = unit.read(self._store.sql.others, (SILENT_MICROSECONDS, worker))
        for other, is_locked, is_silent in others:
            if self._ended(other, is_locked, is_silent):
                _log.warning("worker %s is gone; its messages are taken over", other)
                self.leave(other)

    def is_gone(self, worker: str) -> bool:
        """Whether a worker is dead, or has left."""
        with self._store.unit("") as unit:
            rows = unit.read(self._store.sql.member, (SILENT_MICROSECONDS, worker))
        return all(self._ended(worker, *row) for row in rows)

    def is_staffed(self, app: str) -> bool:
        """Whether a worker of an app lives."""
        with self._store.unit("") as unit:
            rows = unit.read(self._store.sql.crew, (SILENT_MICROSECONDS, app))
        return not all(self._ended(*row) for row in rows)

    def _ended(self, worker: str, is_locked: int, is_silent: int) -> bool:
        """Whether a worker is dead, by its lock, or by its silence where others cannot rely on that."""
        return self._store.dialect.gone(worker) if is_locked else bool(is_silent)

    def _write(self, worker: WorkerInfo, state: str, epoch: int, figures: Figures) -> None:
        locked = self._store.dialect.hold(worker.id)
        with self._store.transaction(fenced=False) as unit:
            handled, failed, p99 = figures
            row = (*worker, state, epoch, handled, failed, int(p99 * MICROSECOND), int(locked))
            unit.write(self._store.sql.join, [row])
            unit.write(self._store.sql.keep_mark, [()])

    def leave(self, worker: str) -> None:
        """Free the leases of a worker, that of the cleaner too, and forget it."""
        sql = self._store.sql
        with self._store.transaction(fenced=False) as unit:
            unit.write(sql.hand_over, [(worker,)])
            unit.write(sql.free, [(worker,)])
            unit.write(sql.leave, [(worker,)])
        self._members.pop(worker, None)
        self._store.dialect.forget(worker)
        self._store.notify(())
