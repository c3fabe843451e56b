"""The dialect of PostgreSQL, through psycopg 3."""

import importlib
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakSet

import sqlalchemy
from pydantic_core import to_json
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from flowkit.errors import ConfigError, Fenced, StoreConflict, StoreUnavailable, TransactionEnded
from flowkit.store.dialect import SWALLOWED, UNKNOWN
from flowkit.store.encoding import Row
from flowkit.store.postgresql.inserts import plain_insert
from flowkit.store.postgresql.listener import Listener, key
from flowkit.store.postgresql.rights import excess
from flowkit.store.postgresql.servers import Refusals, Servers, places
from flowkit.store.statements import ENVELOPE, Statements
from flowkit.url import exposed

CONNECT_SECONDS = 10
LOCK_SECONDS = 10
MARGIN_SECONDS = 5
"""Seconds between a flow's deadline and the time at which the server ends its transaction."""
SLOW_POLL_SECONDS = 1.0
UPGRADE = 0x666C6F776B6974
"""The advisory lock of schema upgrades: "flowkit" as a number."""
PAYLOAD = 2000
"""Characters of a NOTIFY, at most; the server's limit is 8,000 bytes."""
BODY = 5
"""The index of the body in a message row. It travels in binary, separate from the JSON of the rest."""
NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
_STAGE = f"""
    INSERT INTO flowkit_messages
    (copy, flow, {ENVELOPE}, generation, attempts, deliveries, staged, due, worker)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, body, value ->> 5, value ->> 6,
           CAST(value ->> 7 AS bigint), value ->> 8, value ->> 9, value ->> 10, CAST(value ->> 11 AS integer),
           CAST(value ->> 12 AS integer), CAST(value ->> 13 AS integer),
           (SELECT {NOW}), (SELECT {NOW}) + CAST(value ->> 14 AS bigint), value ->> 15
    FROM ROWS FROM (jsonb_array_elements(CAST(%s AS jsonb)), unnest(CAST(%b AS bytea[]))) AS each(value, body)"""
IN_TRANSACTION, NO_PIPELINE = 2, 0
"""PQTRANS_INTRANS and PQ_PIPELINE_OFF of libpq. They are compared for each message, and the driver's enums are slow."""
NOT_ACTIVE = "another group of instances is active now"
_FENCE = f"""
    SELECT CAST(CASE WHEN EXISTS (SELECT 1 FROM flowkit_leases WHERE name = %s AND holder = %s AND token = %s
                                  FOR KEY SHARE) THEN '1' ELSE '{NOT_ACTIVE}' END AS integer)"""
"""Fails unless the row exists, by a cast of text that is no number: so the server does not commit what follows."""
PARAMETERS = 10_000
"""Parameters of one statement, at most; the protocol's limit is 65,535."""
_CONFLICTS = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock timeout
_UNAVAILABLE = ("08", "57P", "53", "58", "25006", "25P03", "25P04")
"""Connection, shutdown, resources, system, read-only; a transaction that was idle too long, or took too long."""
_CANCELLED = "57014"
"""A statement that its timeout or an operator cancelled. In a handler it is the handler's failure."""
_PREPARED = {"26000", "42P05"}
"""A prepared statement that is missing or exists already: psycopg's are named _pg3_0, _pg3_1, …"""
POOLER = (
    "a pooler lends another session of the server for each transaction, as pgbouncer does by pool_mode = transaction; "
    "add pooler=transaction to the parameters of FLOWKIT_DATABASE_URL, or let it name the server itself"
)
_LACKING = {"42501", "42P01", "42703"}
"""Insufficient privilege, no such table, no such column."""
_BARRED = _LACKING | {"25006"}  # read-only transaction
STANDBY_WAIT = "SyncRepWaitForLSN"
"""The server's function that waits for synchronous standbys, in PostgreSQL 9.1 to 18."""
_log = logging.getLogger("flowkit.store")


class PostgresDialect:
    """Implements Dialect on PostgreSQL."""

    name = "postgresql"
    serial = False

    def __init__(self, url: str) -> None:
        self._url, listening = places(url)
        self.pooled = listening != self._url
        """Whether each transaction may run in another session of the server."""
        self.statements = Statements.render(
            now=NOW,
            each="jsonb_array_elements(CAST(? AS jsonb)) AS each(value)",
            among="= ANY(ARRAY(SELECT value ->> 0 FROM {each}))",
            skip="FOR UPDATE SKIP LOCKED",
            marker="%s",
            started="pg_postmaster_start_time()",
            # A row lock writes to the log, and so reaches the standby. No server refuses it; some refuse functions.
            witness="SELECT 1 FROM flowkit_subscriptions LIMIT 1 FOR KEY SHARE",
            ground="SELECT current_setting('search_path'), current_user",
            hold="LOCK TABLE flowkit_counters IN SHARE ROW EXCLUSIVE MODE",
            row="ctid",  # with the key, each thousand rows that retention removes would cost a scan of the whole inbox
        )
        self.engine = create_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            pool_size=6,
            max_overflow=-1,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 25_000,
                "application_name": "flowkit",
                "client_encoding": "utf8",
                # A statement that one session has prepared does not exist in another.
                **({"prepare_threshold": None} if self.pooled else {}),
            },
        )
        self.private = not self.pooled
        self.error = importlib.import_module("psycopg").Error
        self._doubtful: WeakSet[Any] = WeakSet()
        """Connections on which a commit was reported as done without the standby."""
        self._refusals = Refusals()
        self._servers = Servers(self._url, self._refusals, self.pooled)
        event.listen(self.engine, "do_connect", self._servers.connect)
        event.listen(self.engine, "connect", self._connected)
        event.listen(self.engine, "checkout", self._servers.check)
        self._listener = self._listen(listening) if listening is not None else None

    def begin(self, connection: Any, deadline: float) -> None:
        self._servers.begin(connection, f"BEGIN ISOLATION LEVEL READ COMMITTED; {_limits(deadline)}")

    def restore(self, connection: Any, deadline: float) -> None:
        # RESET ALL also ends SET LOCAL. It does not restore the role.
        connection.execute(f"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; {_limits(deadline)}", prepare=False)

    def cleanse(self, connection: Any, exposed: bool) -> bool:
        return False  # DISCARD ALL would also drop the driver's prepared statements

    def pipelined(self, connection: Any) -> AbstractContextManager[object]:
        pipeline: AbstractContextManager[object] = connection.pipeline()
        return pipeline

    def plain(self, statement: str) -> bool:
        return plain_insert(statement) is not None

    def execute(self, cursor: Any, statement: str, rows: Sequence[Row]) -> None:
        insert = plain_insert(statement) if len(rows) > 1 else None
        if insert is not None:
            size = max(1, PARAMETERS // len(insert.names))
            for start in range(0, len(rows), size):
                cursor.connection.execute_numbered(*insert.of(rows[start : start + size]))
        elif len(rows) > 1:
            cursor.executemany(statement, rows)
        else:
            cursor.execute(statement, rows[0])

    def staging(self, rows: list[tuple[Any, ...]]) -> list[tuple[str, list[Row]]]:
        # One statement for all rows: each row of an executemany costs the client and the server a message.
        bodies = [row[BODY] for row in rows]
        plain = [(*row[:BODY], *row[BODY + 1 :]) for row in rows]
        return [(_STAGE, [(to_json(plain).decode(), bodies)])] if rows else []

    def fence(self, cursor: Any, key: tuple[str, str, int]) -> None:
        cursor.execute(_FENCE, key)

    def commit(self, connection: Any, token: str | None) -> None:
        # In a pipeline the server stops at the first error: if the savepoint is missing, it does not commit.
        if token is not None:
            # A function that a handler called may have turned it off, unseen.
            connection.execute("RESET synchronous_commit", prepare=False)
            connection.execute(f"RELEASE SAVEPOINT {token}", prepare=False)
        connection.execute("COMMIT", prepare=False)

    def doubtful(self, connection: Any) -> bool:
        return connection in self._doubtful

    def _connected(self, connection: Any, _: object) -> None:
        def noticed(diagnostic: Any) -> None:
            # If an operator cancels the wait, the server sends only a warning, and reports the commit as done.
            if diagnostic.source_function == STANDBY_WAIT:
                self._doubtful.add(connection)

        connection.add_notice_handler(noticed)

    def token_gone(self, error: BaseException) -> bool:
        # Invalid savepoint specification, no active transaction.
        return getattr(error, "sqlstate", None) in ("3B001", "25P01")

    def broken(self, connection: Any) -> BaseException | None:
        """Return why the transaction cannot continue, or None. A local check of the server's last answer."""
        seen = connection.pgconn.transaction_status, connection.pgconn.pipeline_status
        if seen == (IN_TRANSACTION, NO_PIPELINE) and not connection.lock.locked():
            return None
        status = connection.info.transaction_status.name
        if status == "ACTIVE" or connection.lock.locked() or connection.info.pipeline_status.name != "OFF":
            connection.close()  # the next statement would wait for the handler forever
            return StoreUnavailable(
                "PostgreSQL: the handler left a COPY, a stream or a pipeline of the driver open; use it in a with block"
            )
        if status == "INERROR":
            return RuntimeError(SWALLOWED)
        if status == "IDLE":
            return TransactionEnded("the transaction was ended by the driver")
        return StoreUnavailable("PostgreSQL: the connection was lost")

    def lost(self, connection: Any) -> bool:
        return bool(connection.closed or connection.broken)

    def shut(self, connection: Any) -> bool:
        return bool(connection.closed and not connection.broken)

    def denied(self, connection: Any, error: BaseException) -> bool:
        # A server that ends a session may still finish its commit, whatever error the driver reports.
        severity = getattr(getattr(error, "diag", None), "severity_nonlocalized", None)
        return severity == "ERROR" and not self.lost(connection)

    def discard(self, connection: Any) -> None:
        connection.close()

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        state = getattr(error, "sqlstate", None)
        psycopg = importlib.import_module("psycopg")
        if state == "22P02" and NOT_ACTIVE in str(error):
            return Fenced(NOT_ACTIVE)
        if state in _CONFLICTS:
            return StoreConflict(f"PostgreSQL ({state}): {first_line(error)}")
        if (
            (state or "").startswith(_UNAVAILABLE)
            or (own and state == _CANCELLED and _is_flowkits(error))
            or (state is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError))
        ):
            return StoreUnavailable(f"PostgreSQL ({state or 'connection'}): {first_line(error)}")
        if state in _PREPARED and "_pg3_" in str(error):
            return StoreUnavailable(f"PostgreSQL ({state}): {first_line(error)}; {POOLER}")
        if own and state in _LACKING and "flowkit_" in str(error):
            return StoreUnavailable(
                f"PostgreSQL ({state}): {first_line(error)}; run flowkit db upgrade, and GRANT this role SELECT, "
                "INSERT, UPDATE and DELETE on FlowKit's tables"
            )
        return error

    def barred(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) in _BARRED

    def place(self, connection: Any) -> str:
        (database,) = connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
        return f"{connection.system or UNKNOWN}/{database}"

    def adopt(self, connection: Any) -> None:
        if connection.autocommit and connection.info.transaction_status.name == "IDLE":
            connection.execute("BEGIN")

    # ------------------------------------------------------------ waiting and liveness

    def _listen(self, url: URL) -> Listener:
        # Read the URL as the engine does: it may have several hosts, and its other parameters are the driver's.
        names, settings = self.engine.dialect.create_connect_args(url)
        own = {"application_name": "flowkit watch", "client_encoding": "utf8"}
        settings = {"connect_timeout": CONNECT_SECONDS, **settings, **own}
        return Listener(lambda: self._servers.connect(None, None, names, settings))

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> set[str] | None:
        """Wait for a NOTIFY, and return the flows that it names; None after `seconds`: one may have been lost."""
        seconds = min(seconds, SLOW_POLL_SECONDS)
        if self._listener is None:
            time.sleep(seconds)
            return None
        try:
            return self._listener.wait(seconds)
        except Exception as error:
            raise self.classify(error, own=True) from error

    def notify(self, flows: Collection[str]) -> None:
        # NOTIFY has its own transaction, after the commit: within the batch it would serialise commits.
        names = "\n".join(sorted(flows))
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("SELECT pg_notify('flowkit', %s)", (names if len(names) < PAYLOAD else "",))
        except SQLAlchemyError as error:
            if not self._refusals.excuse(getattr(error, "orig", None), "other workers find messages up to 1 s later"):
                raise

    def hold(self, worker: str) -> bool:
        """Hold an advisory lock until this process ends. Returns whether others can rely on it."""
        try:
            return self._listener is not None and self._listener.hold(worker)
        except Exception as error:
            if self._refusals.excuse(error, "a dead worker is noticed only when its heartbeats stop"):
                return False
            raise self.classify(error, own=True) from error

    def gone(self, worker: str) -> bool:
        """Whether the lock of a worker is free: it is dead."""
        try:
            with self.engine.connect() as connection:
                row = connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(%s)", (key(worker),)).fetchone()
        except SQLAlchemyError as error:
            raise self.classify(getattr(error, "orig", None) or error, own=True) from error
        return bool(row and row[0])

    def forget(self, worker: str) -> None:
        if self._listener is not None:
            self._listener.forget(worker)

    @contextmanager
    def upgrading(self) -> Iterator[sqlalchemy.Connection]:
        try:
            # READ COMMITTED: after the wait for the lock, the changes of its previous holder are visible.
            with self.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE})")
                yield connection
        except SQLAlchemyError as error:
            inner = getattr(error, "orig", None) or error
            cause = self.classify(inner)
            if cause is not inner:
                raise cause from error
            with self.engine.connect() as connection:
                role, schema = connection.exec_driver_sql(
                    "SELECT current_user, coalesce(current_schema(), 'public')"
                ).one()
            raise ConfigError(
                f"the schema of the database of FLOWKIT_DATABASE_URL cannot be upgraded: {first_line(inner)}\n"
                f"role {role} needs: GRANT CREATE, USAGE ON SCHEMA {schema} TO {role};\n"
                "the role that owns FlowKit's existing tables must upgrade them"
            ) from error

    def check_place(self) -> None:
        """Do nothing: the pool checks the server of each connection (`Servers.check`)."""

    def doubts(self) -> list[str]:
        with self.engine.connect():
            pass
        if self._listener is not None and self.pooled:
            self._listener.wait(0.0)  # it connects to the server itself, not to the pooler
        remedy = "add sslmode=verify-full, and sslrootcert= for an authority of your own"
        return exposed("FLOWKIT_DATABASE_URL", str(self._url), self._servers.exposed, remedy)

    def audit(self) -> list[str]:
        with self.engine.connect() as connection:
            return excess(connection)

    def tidy(self) -> None:
        """Do nothing: autovacuum does it."""

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self.engine.dispose()


def _limits(deadline: float) -> str:
    """Return the timeouts of a transaction. The server ends it if its client is frozen or gone; without them, its rows
    would stay locked for good."""
    limit = min(int((deadline + MARGIN_SECONDS) * 1000), 2**31 - 1)
    return (
        f"SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}; "
        f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000}"
    )


def _is_flowkits(error: BaseException) -> bool:
    """Whether a statement was cancelled in FlowKit's tables, and not in a function of the app, such as a trigger that a
    handler's write starts at the commit."""
    context = getattr(getattr(error, "diag", None), "context", None) or ""
    return not context or "flowkit_" in context


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
