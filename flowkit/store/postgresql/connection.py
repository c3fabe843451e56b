"""A connection to PostgreSQL that notices when the server is frozen, and knows the server's identity."""

import select
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

SILENCE_SECONDS = 5.0
"""Seconds of silence after which a new connection tests whether the server answers at all."""
WHO = """
    SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN '0' ELSE
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END FROM pg_control_system()"""
T = TypeVar("T")


class Packet(psycopg.Pipeline):
    """A pipeline that sends all statements together when it ends; psycopg sends each as soon as the socket accepts it.

    The server ends the transaction of a frozen client only if the session is idle in it (`PostgresDialect.begin`). In
    the middle of a pipeline it is not idle: a client frozen there would keep its locks until it wakes up.
    """

    def _communicate_gen(self) -> Generator[Any, Any, None]:
        if not self.command_queue:
            yield from super()._communicate_gen()

    def _enqueue_sync(self) -> None:
        while self.command_queue:
            self.command_queue.popleft()()
        self.pgconn.pipeline_sync()
        self.result_queue.append(None)


class Connection(psycopg.Connection[Any]):
    """Waits for a statement as long as the server lives, and no longer.

    The kernel of a frozen server accepts connections and acknowledges data, so no TCP timeout expires; and a statement
    may take long. So a new connection tests a silent server. Blocks like its base class; if the server is frozen, it
    closes itself and raises psycopg.OperationalError.
    """

    system = 0
    """The system identifier, which a server shares with its standbys; 0 if unknown."""
    timeline = 0
    """The timeline, which grows with each failover; 0 for a standby or if unknown."""

    def introduce(self, before: str = "") -> None:
        """Execute the statements `before`, and read the server's identity. Blocks; raises the server's errors."""
        cursor = self.execute(f"{before};{WHO}", prepare=False)
        while cursor.nextset():
            pass
        self.system, name = cursor.fetchone() or (0, "0")
        self.timeline = int(name, 16)

    def ended(self) -> bool:
        """Whether the server seems to have ended this idle session. A local check for unexpected data, which comes when
        the server ends the session or, rarely, when a setting changed. Does not block."""
        if self.closed:
            return True
        look = select.poll()
        look.register(self.fileno(), select.POLLIN)
        return bool(look.poll(0))

    def execute_numbered(self, statement: str, parameters: Sequence[object]) -> None:
        """Execute a statement with parameters $1, $2, ..., which the driver does not parse."""
        with psycopg.RawCursor(self) as cursor:
            cursor.execute(statement, parameters)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Send the statements of a block together when it ends. Blocks must not be nested."""
        pipeline = self._pipeline = Packet(self)
        try:
            with pipeline:
                yield pipeline
        finally:
            self._pipeline = None

    def wait(self, gen: Generator[Any, Any, T], *rest: Any, **options: Any) -> T:
        return super().wait(self._watched(gen), *rest, **options)

    def _watched(self, waits: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Yield the same waits, and test a silent server. Ten times a second psycopg reports that nothing came."""
        since = looked = 0.0
        try:
            wait = next(waits)
            while True:
                ready = yield wait
                if ready:
                    since = looked = 0.0
                else:
                    since = since or time.monotonic()
                    looked = self._look(since, looked or since)
                wait = waits.send(ready)
        except StopIteration as end:
            found: T = end.value
            return found

    def _look(self, since: float, looked: float) -> float:
        """Test a server that has been silent `since` a time and was last alive at `looked`, both in monotonic seconds.

        Returns when it was last alive. Raises psycopg.OperationalError if it is frozen.
        """
        if time.monotonic() - looked < SILENCE_SECONDS:
            return looked
        if self._answers():
            return time.monotonic()
        host, port = self.info.host, self.info.port
        self.close()
        raise psycopg.OperationalError(
            f"the server at {host}:{port} has not answered for {time.monotonic() - since:.0f} s, and answers no new "
            "connection: it is frozen"
        )

    def _answers(self) -> bool:
        """Whether the server answers a new connection. A refusal is an answer."""
        info = self.info
        try:
            psycopg.connect(
                info.dsn,
                host=info.host,
                port=info.port,
                password=info.password,
                connect_timeout=int(max(1.0, SILENCE_SECONDS)),
                target_session_attrs="any",
            ).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.Error:
            return True
        return True
