"""The session in which a process listens for notifications, and holds the lock that shows others that it lives."""

import threading
from collections.abc import Callable
from typing import Any

_OWN = """
    SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    AND ((classid::bigint << 32) | objid::bigint) = %s"""


def key(worker: str) -> int:
    """Return the advisory lock of a worker: the last 60 bits of its id, a UUIDv7, which are random."""
    return int(worker.replace("-", "")[-15:], 16)


class Listener:
    """One connection, which reconnects after a loss. Thread-safe: calls wait for each other. Raises the driver's
    errors."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._lock = threading.Lock()
        self._held: str | None = None

    def wait(self, seconds: float) -> set[str] | None:
        """Wait for a NOTIFY, and return the flows that it names; None after `seconds`: one may have been lost."""
        with self._lock:
            try:
                for told in self._session().notifies(timeout=seconds, stop_after=1):
                    return set(told.payload.split("\n")) if told.payload else None
            except Exception:
                self._end()
                raise
        return None

    def hold(self, worker: str) -> bool:
        """Hold an advisory lock until this process ends. Returns whether it is really held: poolers share sessions."""
        with self._lock:
            self._held = worker
            if self._session().execute(_OWN, (key(worker),)).fetchone() is None:
                # This does not wait: the server process of a broken connection may hold the lock for some time.
                self._connection.execute("SELECT pg_try_advisory_lock(%s)", (key(worker),))
            return self._connection.execute(_OWN, (key(worker),)).fetchone() is not None

    def forget(self, worker: str) -> None:
        """Release the lock of a worker, even if the server cannot be reached."""
        with self._lock:
            if self._held == worker:
                self._held = None
                self._end()

    def close(self) -> None:
        with self._lock:
            self._end()

    def _session(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._connection.execute("LISTEN flowkit")
            if self._held:
                self._connection.execute("SELECT pg_try_advisory_lock(%s)", (key(self._held),))
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
