"""The simulated database: real SQLite files. The scheduler may act before each statement."""

import json
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from sqlalchemy import event

from flowkit.errors import StoreUnavailable
from flowkit.store.library import sqlite_driver
from flowkit.store.locks import Locks
from flowkit.store.sqlite import _FENCE, BUSY_SECONDS, SqliteDialect
from tests.simulation.world import Process, Task, World

module = sqlite_driver()
SQLITE_BUSY, SQLITE_FULL = 5, 13
FAULTS = ("kill", "freeze", "cut", "full")
"""What can break at a statement: the process, its connection, the disk."""
COMMITS = (*FAULTS, "cut after")
"""At a COMMIT a connection can also be lost when it was done: its outcome is unknown."""
BEGINS = (*FAULTS, "busy")
LOCKING = {"begin", "lease"}
"""What needs the write lock: BEGIN IMMEDIATE, and a statement that is a transaction of its own."""
READS = ("kill", "freeze", "cut")
LOOK_SECONDS = 0.5
"""Who is locked out looks again after so long: who was told that the lock is free may have died."""
HELD = """
    SELECT count(*) FROM flowkit_messages
    WHERE (copy, deliveries) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))"""
"""How many of these rows are leased under these tokens."""
IDLE = {"wait", "due", "due_of_all", "join", "subscribers", "rollout", "active", "keep_active", "keep_mark", "mark"}
"""What idle workers do all the time: seldom worth a fault."""
READ_BEFORE = "SELECT ?1 WHERE ?1 IS NOT NULL"
"""Reads an object as it was."""
FENCED = {"claim", "lease", "remove"}
"""What only the active group may commit."""
NAMES = {text: name for name, text in vars(SqliteDialect.statements).items()} | {_FENCE: "fence"}
QUERIES = {name for text, name in NAMES.items() if text.startswith("SELECT")}


class Lost(module.OperationalError):  # type: ignore[misc, name-defined]
    """The connection is gone, as that of a database server can be."""


@cache
def name_of(statement: str) -> str:
    """What the engine calls a statement; that of a handler is called so."""
    if statement in NAMES:
        return NAMES[statement]
    first = statement.split(None, 1)[0].lower()
    if first == "release":
        return "release savepoint"
    return first if first in ("begin", "commit", "savepoint", "rollback", "pragma") else "handler"


@cache
def faults_at(name: str) -> Sequence[str]:
    if name == "commit":
        return COMMITS
    if name in ("begin", "lease"):
        return BEGINS
    if name in ("pragma", "savepoint", "release savepoint", "rollback", *IDLE, *QUERIES):
        return READS
    return FAULTS


def tokens(statement: str, rows: Sequence[Any]) -> list[Any] | None:
    """The (row, token) of each lease that a statement is about. None for one that its holder alone may not run."""
    if statement.startswith("DELETE FROM flowkit_messages WHERE copy"):
        return [lease for leases, *_ in rows for lease in json.loads(leases)]
    if statement.startswith("UPDATE flowkit_messages") and "WHERE copy = ?" in statement:
        return [row[-2:] for row in rows]
    return None


class Connection(module.Connection):  # type: ignore[misc, name-defined]
    """A connection of one process."""

    news: "News"
    armed = False
    """Not while it is being opened: SQLAlchemy holds a lock then that others would wait for."""
    lost = False
    effective = False
    """Whether the transaction did what only the active group may."""
    several = False
    """Whether it stands for one to a server, where several write at once."""
    missed: dict[str, bytes | None]
    """Object -> what was there when its transaction asked for the lock, where others changed it before it had that. A
    server lets no transaction wait for its beginning: it may have read the object in the meantime."""

    def cut(self) -> None:
        """It is gone, and the server rolls back what is open."""
        self.lost = True
        self.rollback()
        self.news.cuts += 1
        raise Lost("the connection was lost")

    def rollback(self) -> None:
        super().rollback()
        if self.armed:
            self.news.unlock(self)

    def close(self) -> None:
        super().close()
        if self.armed:
            self.news.unlock(self)

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(Cursor)

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        return self.cursor().execute(statement, parameters)


class Cursor(module.Cursor):  # type: ignore[misc, name-defined]
    def execute(self, statement: str, parameters: Any = ()) -> Any:
        call = super().execute

        def run() -> Any:
            missed = self.connection.missed if name_of(statement) == "get_object" else {}
            if parameters[1:] and parameters[1] in missed:  # the next look at it sees what is there now
                return call(READ_BEFORE, (missed.pop(parameters[1]),))
            return call(statement, parameters)

        return self._at(statement, lambda: self._watched(statement, [parameters], run))

    def executemany(self, statement: str, rows: Any) -> Any:
        call = super().executemany
        return self._at(statement, lambda: self._watched(statement, rows, lambda: call(statement, rows)))

    def _watched(self, statement: str, rows: Sequence[Any], call: Callable[[], Any]) -> Any:
        """Run a statement. One of a holder of leases must not touch any row whose token has changed."""
        leases = tokens(statement, rows)
        if leases is None:
            return call()
        super().execute(HELD, (json.dumps(leases),))
        (held,) = self.fetchone()
        result = call()
        if self.rowcount > held:
            self.connection.news.world.blame(AssertionError(f"a stale holder changed rows of another: {statement}"))
        return result

    def _changes(self) -> int:
        """How many changes of objects are committed."""
        return int(super().execute("SELECT coalesce(max(number), 0) FROM changes").fetchone()[0])

    def _missed(self, changes: int) -> dict[str, bytes | None]:
        """What was there of each object after so many changes that has changed since then."""
        return dict(
            super().execute("SELECT key, before FROM changes WHERE number > ? ORDER BY number DESC", (changes,))
        )

    def _judge(self) -> None:
        """A commit of a group counts only while that is active."""
        world = self.connection.news.world
        assert world.current is not None
        fence = world.current.process.fence
        if fence and not super().execute(_FENCE, fence).fetchall():
            world.blame(AssertionError(f"a commit of {fence} counts, and another group is active"))

    def _at(self, statement: str, call: Callable[[], Any]) -> Any:
        connection = self.connection
        if not connection.armed:
            return call()
        news, name = connection.news, name_of(statement)
        world, since = news.world, news.world.time
        fault = world.point(name, faults_at(name))
        if connection.lost:
            raise Lost("the connection was lost")
        if fault in ("busy", "full", "cut"):
            world.hit()
        if fault == "busy":
            raise _error(SQLITE_BUSY, "database is locked")
        if fault == "full":
            raise _error(SQLITE_FULL, "database or disk is full")
        if fault == "cut":
            connection.cut()
        changes = self._changes() if name == "begin" and connection.several and news.writer else None
        if name in LOCKING:
            news.await_lock(connection, since + BUSY_SECONDS)
        if name == "commit" and connection.effective:
            self._judge()
        connection.effective = name != "begin" and (connection.effective or name in FENCED)
        result = call()
        if name == "begin":
            news.writer = connection
            connection.missed = {} if changes is None else self._missed(changes)
        elif not connection.in_transaction:
            news.unlock(connection)
        if fault == "cut after":
            world.hit()
            connection.cut()
        if name in ("commit", "lease"):
            world.point(f"after {name}", ("kill", "freeze"))
        return result


def _error(code: int, text: str) -> Exception:
    error: Exception = module.OperationalError(text)
    error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error


class Dialect(SqliteDialect):
    """SQLite as one process sees it, with connections that can be lost like those to a server."""

    def __init__(self, world: World, process: Process, path: str, serial: bool, news: "News") -> None:
        # SQLite keeps the clock in a function that no collection looks into: by it every world would stay for good.
        super().__init__(path, weakref.proxy(world))
        self.serial = serial
        self.statements = replace(self.statements, started="SELECT flowkit_cuts()")
        self._world = world
        self._news = news
        self._waiters: list[Task] = []
        self._connections: list[Connection] = []
        event.listen(self.engine, "do_connect", self._connect)
        event.listen(self.engine, "connect", self._arm)
        process.onto_death.append(self._died)
        news.dialects.append(self)

    def _connect(self, dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        options["factory"] = Connection
        options["timeout"] = 0

    def _prepare(self, connection: Any, record: Any) -> None:
        self._tell_time(connection)
        news = weakref.proxy(self._news)
        connection.create_function("flowkit_cuts", 0, lambda: news.cuts)
        connection.execute("PRAGMA synchronous = OFF")

    def _arm(self, connection: Any, record: Any) -> None:
        connection.news, connection.armed = self._news, True
        connection.several, connection.missed = not self.serial, {}
        self._connections.append(connection)

    def lost(self, connection: Any) -> bool:
        return bool(connection.lost) or super().lost(connection)

    def broken(self, connection: Any) -> BaseException | None:
        return StoreUnavailable("the connection was lost") if connection.lost else super().broken(connection)

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        return StoreUnavailable(str(error)) if isinstance(error, Lost) else super().classify(error, own)

    def begin(self, connection: Any, deadline: float) -> None:
        connection.execute("BEGIN IMMEDIATE")  # which waits in the world's time

    def commit(self, connection: Any, token: str | None) -> None:
        super().commit(connection, token)
        self._news.tell()

    def wait(self, seconds: float) -> set[str] | None:
        self._world.point("wait", ("kill", "freeze"))
        self._world.wait(self._waiters, seconds)
        return None

    def tidy(self) -> None:
        """The log is small."""

    def _died(self) -> None:
        """What the machine does with a dead process: its transactions are rolled back, its locks are free."""
        self._news.dialects.remove(self)
        for connection in self._connections:
            connection.armed = False
            with suppress(module.ProgrammingError):  # the pool has closed it
                connection.rollback()  # closed amid a statement it would live on, and with it its lock
            self._news.unlock(connection)
            connection.close()
            del connection.news  # no collection sees that cursors hold their connection: all would stay for good
        for descriptor in self._locks.descriptors:
            os.close(descriptor)
        self._locks = Locks(f"{self.path}-workers")  # the numbers are other files' from now on


class News:
    """Tells those who wait that something was committed, or that the write lock is free."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dialects: list[Dialect] = []
        self.cuts = 0
        """How often a connection was lost: each time the server may have restarted."""
        self.writer: Connection | None = None
        """Who has the write lock."""
        self.locked_out: list[Task] = []
        """Who waits for it."""

    def tell(self) -> None:
        for dialect in self.dialects:
            self.world.wake_some(dialect._waiters)

    def await_lock(self, connection: Connection, until: float) -> None:
        """Wait until nobody else has the write lock. Raises what SQLite says of one that does not come."""
        while self.writer not in (None, connection):
            if self.world.time >= until:
                raise _error(SQLITE_BUSY, "database is locked")
            self.world.wait(self.locked_out, min(until - self.world.time, LOOK_SECONDS))

    def unlock(self, connection: Connection) -> None:
        """If this one had the lock, any of those who wait for it tries to get it."""
        if self.writer is connection:
            self.writer = None
            if self.locked_out:
                self.world.wake(self.locked_out.pop(int(self.world.order.random() * len(self.locked_out))))
