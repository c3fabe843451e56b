"""The session in which a process hears of new messages, and holds the lock that tells others that it lives."""

import threading
from collections.abc import Callable
from typing import Any

_OWN = """
    SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    AND ((classid::bigint << 32) | objid::bigint) = %s"""


def key(worker: str) -> int:
    """The advisory lock of a worker: 63 bits of its id, a UUIDv7, whose last digits are random."""
    return int(worker.replace("-", "")[-15:], 16)


class Listener:
    """One connection, made again when it is lost. Thread-safe: calls wait for each other. Raises as the driver does."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._lock = threading.Lock()
        self._held: str | None = None

    def wait(self, seconds: float) -> set[str] | None:
        """Wait for a NOTIFY, which names flows; at the end of the time one may have been lost."""
        with self._lock:
            try:
                for told in self._session().notifies(timeout=seconds, stop_after=1):
                    return set(told.payload.split("\n")) if told.payload else None
            except Exception:
                self._end()
                raise
        return None

    def hold(self, worker: str) -> bool:
        """Hold an advisory lock for as long as this process lives; whether it is in fact held (poolers share)."""
        with self._lock:
            self._held = worker
            if self._session().execute(_OWN, (key(worker),)).fetchone() is None:
                # Never waited for: the backend of a connection that broke may hold it for some time.
                self._connection.execute("SELECT pg_try_advisory_lock(%s)", (key(worker),))
            return self._connection.execute(_OWN, (key(worker),)).fetchone() is not None

    def forget(self, worker: str) -> None:
        """Release that lock, also when the server is away."""
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
