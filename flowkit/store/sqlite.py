"""SQLite: one host, one writer at a time, nothing to install.

Write-ahead log with synchronous=FULL: every commit is synced to disk. SQLite 3.7.0 to 3.51.2 can corrupt a database
in that mode under concurrent checkpoints (fixed in 3.51.3, https://sqlite.org/wal.html). They get a rollback journal.
"""

import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import QueuePool, StaticPool

from flowkit.errors import (
    ConfigError,
    Fenced,
    StoreConflict,
    StoreLost,
    StoreMissing,
    StoreOutdated,
    StoreUnavailable,
    TransactionEnded,
)
from flowkit.fork import never_close, part_with
from flowkit.ports import Clock
from flowkit.store.encoding import Row
from flowkit.store.library import FileId, file_id, files, refuse, sqlite_driver
from flowkit.store.locks import Locks
from flowkit.store.sql import SqlStore
from flowkit.store.statements import Statements

_log = logging.getLogger("flowkit.store")

BUSY_SECONDS = 30
LOCK_POLL_SECONDS = 0.0003
POLL_SECONDS = 0.0005
IDLE_POLL_SECONDS = 0.05
PATIENCE = 8
"""A pause is the waited time divided by this. So steady messages wait for a fraction of their own intervals, and the
commits of workers' heartbeats keep no process busy."""
WAL_BYTES = 64 * 1024 * 1024
_FENCE = "SELECT 1 FROM flowkit_leases WHERE name = ? AND holder = ? AND token = ?"
_TEXT = partial(str, encoding="utf-8", errors="surrogateescape")
"""How text columns are read: invalid UTF-8 becomes characters that no envelope may hold."""
_CONFLICTS = {5, 6}  # SQLITE_BUSY, SQLITE_LOCKED
_UNAVAILABLE = {8, 10, 13, 14, 26, 11}  # READONLY, IOERR, FULL, CANTOPEN, NOTADB, CORRUPT


def safe_wal(module: ModuleType) -> bool:
    """Whether this SQLite can use a write-ahead log without the corruption of 3.7.0 to 3.51.2."""
    version: tuple[int, ...] = module.sqlite_version_info
    return version >= (3, 51, 3)


class SqliteDialect:
    """Implements Dialect on SQLite."""

    name = "sqlite"
    serial = True
    private = True
    statements = Statements.render(
        now="flowkit_now()", each="json_each(?)", among="IN (SELECT value ->> 0 FROM {each})", skip="", marker="?"
    )

    def __init__(self, path: str, clock: Clock) -> None:
        memory = path == ":memory:"
        self.path = path if memory else os.path.abspath(path)
        self.module = sqlite_driver()
        self.error = self.module.Error
        self._file: FileId | None = None
        """The file that this process has opened; None for a database in memory."""
        self._clock = clock
        self._watching = threading.Lock()
        self._watch: Any = None
        self._seen = 0
        self._told = 0.0
        """The monotonic time of the last commit that `wait` saw."""
        self._locks = Locks(f"{self.path}-workers")
        self._open: set[Any] = set()
        """The driver's open connections, which do not support weak references."""
        self.engine = create_engine(
            "sqlite://" if memory else f"sqlite:///{self.path}",
            module=self.module,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            poolclass=StaticPool if memory else QueuePool,
            connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
            **({} if memory else {"pool_size": 6, "max_overflow": -1}),
        )
        event.listen(self.engine, "do_connect", lambda *_: self._check_file())  # connecting would create a new file
        event.listen(self.engine, "connect", self._prepare)
        event.listen(self.engine, "close", lambda connection, record: self._open.discard(connection))
        part_with(self, SqliteDialect._lent)

    def _lent(self) -> Iterable[int]:
        """A forked child must not keep these: it would hold the locks. SQLite's own descriptors stay: if the child
        closed a connection, it would undo the parent's transaction, and delete the parent's log."""
        for connection in self._open:
            never_close(connection)
        return self._locks.descriptors

    def place(self, connection: Any) -> str:
        """Return "": nothing tells a copy from a moved file."""
        return ""

    def adopt(self, connection: Any) -> None:
        self._check_file()
        if not isinstance(connection, self.module.Connection):
            raise refuse(self.path, f"app.outbox(session): the session's driver is {type(connection).__module__}; it")
        self._tell_time(connection)
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")

    def _tell_time(self, connection: Any) -> None:
        clock = self._clock
        connection.create_function("flowkit_now", 0, lambda: int(clock.now() * 1_000_000))

    def _prepare(self, connection: Any, record: Any) -> None:
        self._open.add(connection)
        self._tell_time(connection)
        mode = "WAL" if safe_wal(self.module) else "DELETE"
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # SQLite stores any bytes as text. Read strictly, one such row would fail every lease of its flow.
        connection.text_factory = _TEXT
        if self._file is None and self.path != ":memory:":
            self._file = file_id(self.path)
            if self._file is not None:
                files().open(self, self._file)

    def check_place(self) -> None:
        self._check_file()
        log = f"{self.path}-wal"
        # The log exists while any process has the database open, as the watching connection does.
        if self._watch is not None and safe_wal(self.module) and self._file is not None and not os.path.exists(log):
            raise StoreLost(
                f"SQLite: {log} was removed while this process had it open, and its commits would be lost; stop all "
                "processes that use this database, and start them again"
            )

    def _check_file(self) -> None:
        """Raise StoreLost unless the file is still at its path: processes that start later would not find the commits
        of this one."""
        if self._file is not None and file_id(self.path) != self._file:
            raise StoreLost(
                f"SQLite: {self.path} was removed or replaced while this process had it open, and its commits would "
                "be lost; nothing is committed any more; restore the right file, and start this process again"
            )

    def doubts(self) -> list[str]:
        return []

    def audit(self) -> list[str]:
        return []

    def pipelined(self, connection: Any) -> AbstractContextManager[object]:
        return nullcontext()

    def plain(self, statement: str) -> bool:
        return False  # there are no round trips to save

    def execute(self, cursor: Any, statement: str, rows: Sequence[Row]) -> None:
        if len(rows) > 1:
            cursor.executemany(statement, rows)
        else:
            cursor.execute(statement, rows[0])

    def staging(self, rows: list[tuple[Any, ...]]) -> list[tuple[str, list[Row]]]:
        return [(self.statements.stage, [*rows])] if rows else []

    def fence(self, cursor: Any, key: tuple[str, str, int]) -> None:
        # There is one writer at a time: no other can change this row before the end of the transaction.
        if not cursor.execute(_FENCE, key).fetchall():
            raise Fenced("another group of instances is active now")

    def commit(self, connection: Any, token: str | None) -> None:
        self._check_file()
        if token is not None:
            connection.execute(f"RELEASE SAVEPOINT {token}")
        connection.execute("COMMIT")

    def doubtful(self, connection: Any) -> bool:
        return False

    def token_gone(self, error: BaseException) -> bool:
        return "no such savepoint" in str(error)

    def begin(self, connection: Any, deadline: float) -> None:
        """Begin a transaction, and wait for the write lock by short polls. SQLite's own waits grow to 100 ms: a busy
        worker, which asks again at once, would take the lock again and again before a waiting one."""
        since = time.monotonic()
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            while not self._begun(connection, since):
                time.sleep(max(LOCK_POLL_SECONDS, min((time.monotonic() - since) / PATIENCE, IDLE_POLL_SECONDS)))
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")

    def _begun(self, connection: Any, since: float) -> bool:
        """Try to get the lock, and return whether that succeeded. Raises SQLite's error after `BUSY_SECONDS`."""
        try:
            # IMMEDIATE: a read transaction that becomes a writing one fails at once if another has written meanwhile.
            connection.execute("BEGIN IMMEDIATE")
        except self.module.OperationalError as error:
            if not isinstance(self.classify(error), StoreConflict) or time.monotonic() - since > BUSY_SECONDS:
                raise
            return False
        return True

    def broken(self, connection: Any) -> BaseException | None:
        """Return why the transaction is not open, or None. SQLite has no failed transactions, only ended ones."""
        try:
            open = connection.in_transaction
        except self.error:
            return StoreUnavailable(f"SQLite ({self.path}): the connection was closed")
        return None if open else TransactionEnded("the transaction was ended by the driver")

    def lost(self, connection: Any) -> bool:
        try:
            connection.in_transaction  # noqa: B018 - raises where it is closed
        except self.error:
            return True
        return False

    def shut(self, connection: Any) -> bool:
        return SqliteDialect.lost(self, connection)

    def restore(self, connection: Any, deadline: float) -> None:
        """Do nothing: FlowKit refuses a handler's statement that sets a pragma."""

    def cleanse(self, connection: Any, exposed: bool) -> bool:
        if exposed and self.path != ":memory:":
            return False
        made = "SELECT type, replace(name, '\"', '\"\"') FROM temp.sqlite_master WHERE type IN ('table', 'view')"
        for kind, name in connection.execute(made).fetchall():
            connection.execute(f'DROP {kind} IF EXISTS temp."{name}"')
        for _, name, *_ in connection.execute("PRAGMA database_list").fetchall():
            if name not in ("main", "temp"):
                connection.execute("DETACH ?", (name,))
        return True

    def denied(self, connection: Any, error: BaseException) -> bool:
        return not self.lost(connection)

    def discard(self, connection: Any) -> None:
        # Closed in the middle of a transaction, SQLite keeps its write lock while any statement of the connection
        # lives, for example in the traceback of an error. A full or missing disk may refuse the rollback.
        if not self.lost(connection):
            try:
                connection.rollback()
            except self.error as error:
                _log.warning("SQLite (%s): an abandoned transaction could not be rolled back: %s", self.path, error)
        connection.close()

    def barred(self, error: BaseException) -> bool:
        return False

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return error
        if code & 0xFF in _CONFLICTS:
            return StoreConflict(f"SQLite: {error}")
        if code & 0xFF in _UNAVAILABLE:
            return StoreUnavailable(f"SQLite ({self.path}): {error}")
        return error

    # ------------------------------------------------------------ waiting and liveness

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def wait(self, seconds: float) -> set[str] | None:
        """Poll `PRAGMA data_version`, which changes with every commit of another connection; less often when idle."""
        end = time.monotonic() + seconds
        while True:
            with self._watching:
                if self._watch is None:
                    self._watch = self.engine.raw_connection()
                version = self._watch.cursor().execute("PRAGMA data_version").fetchone()[0]
                news = bool(version != self._seen)
                self._seen, now = version, time.monotonic()
                self._told = now if news else self._told
            if news or now >= end:
                return None
            pause = max(POLL_SECONDS, min((now - self._told) / PATIENCE, IDLE_POLL_SECONDS))
            time.sleep(min(end - now, pause))

    def notify(self, flows: Collection[str]) -> None:
        """Do nothing: `wait` sees every commit."""

    def hold(self, worker: str) -> bool:
        """Hold a lock file until this process ends, so that others see its death at once. Returns False in memory."""
        if self.path == ":memory:":
            return False
        self._locks.hold(worker)
        return True

    def gone(self, worker: str) -> bool:
        return self._locks.gone(worker)

    def forget(self, worker: str) -> None:
        self._locks.forget(worker)

    @contextmanager
    def upgrading(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def tidy(self) -> None:
        """Truncate the write-ahead log if a long reader has let it grow."""
        log = Path(f"{self.path}-wal")
        if log.exists() and log.stat().st_size > WAL_BYTES:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._locks.close()
        with self._watching:
            if self._watch is not None:
                self._watch.close()
        self.engine.dispose()
        files().close(self)


def open_store(url: str, clock: Clock, check: bool = True, create: bool = True) -> SqlStore:
    """Open the SQLite store of a URL. With `create`, create a missing file and upgrade the schema to this version;
    without, `check` the schema. Blocks. Raises ConfigError, StoreMissing, StoreOutdated or StoreUnavailable."""
    path = make_url(url).database or ":memory:"
    if path != ":memory:":
        folder = Path(path).absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"FLOWKIT_DATABASE_URL names {path}, but the folder {folder} does not exist; create it")
        if not create and not Path(path).exists():
            raise StoreMissing(
                f"FLOWKIT_DATABASE_URL names {path}, and there is no such file here; go to the folder where the flows "
                "run, or set it to their database"
            )
        if create:
            _make(path)
    store = SqlStore(SqliteDialect(path, clock), clock)
    try:
        if create:
            store.schema.make()
        elif check:
            store.schema.check()
    except StoreOutdated:
        raise
    except Exception as error:
        cause = store.classify(error)
        if isinstance(cause, StoreConflict):
            raise StoreUnavailable(f"{cause}; another transaction held {path} for {BUSY_SECONDS:g}s") from None
        raise ConfigError(f"FLOWKIT_DATABASE_URL names {path}, which cannot be used as a store: {cause}") from None
    return store


def _make(path: str) -> None:
    """Create a missing file, readable for its user only. SQLite gives its log the same mode; by itself SQLite would let
    every user read both."""
    # Like SQLite, this creates the target of a dangling link. SQLite itself reports why a file cannot be created.
    with suppress(OSError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
