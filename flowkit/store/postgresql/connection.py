"""A connection to PostgreSQL that notices when the server is frozen, and knows whether it was replaced."""

import select
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

SILENCE_SECONDS = 5.0
"""A server that has not answered for so long is asked whether it answers anybody."""
WHO = """
    SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN '0' ELSE
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END FROM pg_control_system()"""
T = TypeVar("T")


class Packet(psycopg.Pipeline):
    """A pipeline whose statements leave together, at its end; psycopg sends each as soon as the socket takes it.

    The server ends a transaction whose client is frozen when that is idle in it (`PostgresDialect.begin`), which it is
    not in the middle of a pipeline. So nobody may be frozen there: what is locked would be so until it wakes up.
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

    The kernel of a frozen server accepts connections and acknowledges what is sent, so no timeout of TCP ends; and a
    statement may take its time. So a server that is silent is tried with a new connection. Blocks like its base class;
    raises psycopg.OperationalError, and is closed, when the server is frozen.
    """

    system = 0
    """What a server and its standbys have in common."""
    timeline = 0
    """Grows with each failover."""

    def introduce(self, before: str = "") -> None:
        """Execute these statements, and ask the server which one it is. Raises what it refuses."""
        cursor = self.execute(f"{before};{WHO}", prepare=False)
        while cursor.nextset():
            pass
        self.system, name = cursor.fetchone() or (0, "0")
        self.timeline = int(name, 16)

    def ended(self) -> bool:
        """Whether the server seems to have ended this idle session. A local look: data arrives unasked when the server
        ends the session, or, seldom, when a setting changed. Does not block."""
        if self.closed:
            return True
        look = select.poll()
        look.register(self.fileno(), select.POLLIN)
        return bool(look.poll(0))

    def execute_numbered(self, statement: str, parameters: Sequence[object]) -> None:
        """Execute a statement whose parameters are $1, $2, ...: the driver does not look for them in the text."""
        with psycopg.RawCursor(self) as cursor:
            cursor.execute(statement, parameters)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Statements that go to the server together. Not within another one."""
        pipeline = self._pipeline = Packet(self)
        try:
            with pipeline:
                yield pipeline
        finally:
            self._pipeline = None

    def wait(self, gen: Generator[Any, Any, T], *rest: Any, **options: Any) -> T:
        return super().wait(self._watched(gen), *rest, **options)

    def _watched(self, waits: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The same waits, of which psycopg tells ten times a second that nothing came."""
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
        """Nothing came since one time; the server was alive at another. Returns when it was so last."""
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
        """Whether the server says anything to a new connection. A refusal is an answer."""
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
