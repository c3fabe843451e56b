"""The unit of work: one transaction for the inbox, the handlers' effects, the outgoing messages and the ledger."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from sqlalchemy import Connection, RootTransaction
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from flowkit.errors import CommitUnknown, StoreConflict, StoreUnavailable, TransactionEnded
from flowkit.message import Message
from flowkit.ports import Claim, Copy, Delivery, Fence, Identity, Letter, Objects, Reopening, Tally
from flowkit.store.guard import HandlerConnection, HandlerSession
from flowkit.store.objects import SqlObjects
from flowkit.store.tables import DEAD, OPEN

if TYPE_CHECKING:
    from flowkit.store.sql import SqlStore

MICROSECOND = 1_000_000
Row = Sequence[object] | Mapping[str, object]
"""The parameters of a statement: in order, or by name."""
SWALLOWED = (
    "a database error was caught inside the handler, but it had failed the transaction; let the error pass, or guard "
    "the statement with `with db.begin_nested():`"
)
TOKEN = "flowkit_unit"
"""A savepoint set before a handler gets the transaction. It is gone if the handler ended that transaction."""


class SqlUnit:
    """A unit of work on one connection. FlowKit's own statements go to the driver; handlers get guarded objects."""

    def __init__(
        self,
        store: "SqlStore",
        connection: Connection,
        flow: str,
        deadline: float,
        lane: str,
        begun: bool = False,
        fence: Fence | None = None,
    ) -> None:
        self.used = self.together = False
        self.opening: Callable[[], None] | None = None
        self._store = store
        self.sql = store.sql
        self._connection = connection
        driver: Any = connection.connection.driver_connection
        self._driver, self._cursor = driver, driver.cursor()
        self._flow = flow
        self._lane = lane
        self._deadline = deadline
        self._fence = fence
        self._begun = begun
        self._gone = False
        self._waiting: list[tuple[str, list[Row]]] = []
        self._guarded = False
        self._failed: BaseException | None = None
        self._met: BaseException | None = None
        self._root: RootTransaction | None = None
        self._session: HandlerSession | None = None

    # ------------------------------------------------------------ inbox

    def look(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        found = {
            (flow, source, id): (state, generation, attempts, suspect)
            for flow, source, id, state, generation, attempts, suspect in self.read(
                self.sql.look, (to_json(sorted({one.identity for one in deliveries})).decode(),)
            )
        }
        claims = {}
        for one in deliveries:
            state, generation, attempts, suspect = found.get(one.identity, (OPEN, 0, one.attempts, 0))
            if state == OPEN and generation <= one.generation:
                claims[one.identity] = Claim(attempts, bool(suspect))
        return claims

    def claim(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        # One row per identity, the highest generation; sorted, so that two claims never deadlock each other.
        wanted: dict[Identity, tuple[int, int]] = {}
        for one in deliveries:
            wanted[one.identity] = max(wanted.get(one.identity, (0, 0)), (one.generation, one.attempts))
        rows = [(*identity, *wanted[identity]) for identity in sorted(wanted)]
        self.begin()
        return {
            (flow, source, id): Claim(attempts, bool(suspect))
            for flow, source, id, attempts, suspect in self.read(self.sql.claim, (to_json(rows).decode(),))
        }

    def reopen(self, rows: Sequence[Reopening]) -> None:
        self.write(
            self.sql.set_inbox,
            [(OPEN, one.generation, one.attempts, int(one.suspect), *one.identity) for one in rows],
        )

    def bury(self, letters: Sequence[Letter]) -> None:
        self.write(
            self.sql.set_inbox,
            [(DEAD, one.delivery.generation, one.attempts, 0, *one.delivery.identity) for one in letters],
        )
        self.write(
            self.sql.bury,
            [
                (
                    self._store.ids(),
                    one.delivery.flow,
                    *envelope(one.delivery.message),
                    one.delivery.generation,
                    one.attempts,
                    one.reason,
                    one.error,
                    one.stack,
                    self._store.version,
                )
                for one in letters
            ],
        )

    # ------------------------------------------------------------ messages

    def subscribers(self, channels: Collection[str]) -> Mapping[str, Sequence[str]]:
        routes: dict[str, list[str]] = {}
        if channels:
            names = to_json([[channel] for channel in sorted(channels)]).decode()
            for channel, flow in self.read(self.sql.subscribers, (names,)):
                routes.setdefault(channel, []).append(flow)
        return routes

    def stage(self, copies: Sequence[Copy], lease: float = 0.0) -> None:
        self._waiting += self._store.dialect.staging(
            [
                (
                    one.row,
                    one.flow,
                    *envelope(one.message),
                    one.generation,
                    one.attempts,
                    int(bool(lease) and not one.delay),
                    int((one.delay or lease) * MICROSECOND),
                    self._lane[:36] if lease and not one.delay else None,
                )
                for one in copies
            ]
        )

    def remove(self, rows: Collection[tuple[str, int]]) -> None:
        if rows:
            copies = to_json(sorted(rows)).decode()
            self.write(self.sql.remove, [(copies, copies)])

    def count(self, tallies: Mapping[str, Tally]) -> None:
        self.write(self.sql.count, [(flow, self._lane, *tallies[flow]) for flow in sorted(tallies)])

    # ------------------------------------------------------------ handlers

    def give(self, wanted: type) -> object:
        connection = self._connection
        assert isinstance(connection, HandlerConnection)
        if not connection.in_transaction():
            connection.touched = self.touch
            self._root = connection.begin()
            connection.postpone = self._postpone  # now: SQLAlchemy itself has asked for the driver's connection
        if wanted is Connection:
            return connection
        if wanted is Objects:
            return SqlObjects(self, self._flow.split(".", 1)[0])
        if self._session is None:
            self._session = HandlerSession(bind=connection, join_transaction_mode="rollback_only")
            self._session.touched = self.touch
        return self._session

    def touch(self) -> None:
        """A handler uses the transaction: note it, and see to it that there is one and that its end is noticed."""
        self.used = True
        if self._guarded:
            return
        if self._failed is not None:
            raise self._failed
        try:
            self.begin()
            if self.opening is not None:
                self.opening()
            self._execute(f"SAVEPOINT {TOKEN}")
        except BaseException as error:
            self._failed = error  # the handler may catch it and go on: it must not write, nor seem to be done
            raise
        self._guarded = True

    def _postpone(self, statement: str, rows: Sequence[Row]) -> bool:
        """Let a handler's plain INSERT wait, so that those of a batch take one round trip. Any other statement, or one
        inside a savepoint of the handler's own, comes after those that wait."""
        wait = self.together and not self._connection.in_nested_transaction() and self._store.dialect.plain(statement)
        if wait:
            self.write(statement, rows)
        if not wait or len(rows) > 1:  # a session that flushes several objects wants to know whether they are refused
            self.send()
        return wait

    def broken(self) -> BaseException | None:
        if self._failed is not None:
            return self._failed
        if not self._guarded:
            return None
        root = self._root
        if root is None or not root.is_active:
            return self._swallowed()
        broken = self._store.dialect.broken(self._driver)
        return self._swallowed() if isinstance(broken, RuntimeError) else broken

    def ended(self, error: BaseException) -> BaseException | None:
        broken = self.broken()
        if isinstance(broken, StoreConflict | StoreUnavailable | TransactionEnded):
            return broken
        # Only what this transaction met: the handler may speak to other databases too.
        cause: BaseException | None = error
        seen: set[int] = set()  # `raise error from error` is possible
        while cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            if cause is self._met or getattr(cause, "orig", cause) is self._failure():
                met = self._store.classify(cause)
                return met if isinstance(met, StoreConflict | StoreUnavailable) else None
            cause = cause.__cause__
        return None

    def _failure(self) -> BaseException | None:
        """What the driver raised last for a handler."""
        return self._connection.failure if isinstance(self._connection, HandlerConnection) else None

    def _swallowed(self) -> BaseException:
        """A handler caught a database error: a collision, which runs again, or its own mistake."""
        met = self._failure()
        cause = self._store.classify(met) if met is not None else met
        return cause if isinstance(cause, StoreConflict | StoreUnavailable) else RuntimeError(SWALLOWED)

    def flush(self) -> None:
        if self._session is not None and self._guarded:
            self._session.flush()
        self.send()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        session = self.give(Session)
        assert isinstance(session, HandlerSession)
        session.shared = False
        with session.begin_nested() as transaction:
            session.connection()  # the savepoint is set now, not at the session's first statement: others write too
            self.used = False
            yield
            if not transaction.is_active:
                raise RuntimeError(SWALLOWED)

    # ------------------------------------------------------------ the transaction

    def witness(self) -> None:
        if self.sql.witness:
            self.write(self.sql.witness, [()])

    def commit(self) -> None:
        if not self._begun and not self._waiting:
            return
        self.begin()
        if self._guarded:
            if self._session is not None:
                self._session.flush()
            broken = self.broken()
            if broken is not None:
                raise broken
        try:
            with self._store.dialect.pipelined(self._driver):
                self.send()
                if self._fence is not None:
                    self._store.dialect.fence(self._cursor, self._fence.key)
                self._store.dialect.commit(self._driver, TOKEN if self._guarded else None)
        except Exception as error:
            met = error.__cause__ if isinstance(error, StoreUnavailable) and error.__cause__ else error
            cause = self._cause(error)
            if isinstance(cause, StoreUnavailable) and not self._store.dialect.denied(self._driver, met):
                raise CommitUnknown(str(cause)) from error
            if cause is error and self._store.dialect.token_gone(error):
                raise TransactionEnded("a handler ended the transaction by the driver and began another") from error
            raise cause from error
        self._begun = False
        if self._store.dialect.doubtful(self._driver):
            self._gone = True
            raise CommitUnknown("the wait for the synchronous standby was cancelled: it may not have the commit")

    def end(self) -> None:
        """Undo what is not committed and return the connection. Never raises: a broken connection is discarded."""
        self._waiting.clear()  # or the guarded connection would send it before it is rolled back
        try:
            if self._session is not None:
                self._session.release()
            with suppress(Exception):  # on a connection that is closed it cannot be
                self._cursor.close()
        finally:
            if self._gone or self._store.dialect.lost(self._driver) or (self._begun and not self._rolled_back()):
                self._store.dialect.discard(self._driver)
                Connection.invalidate(self._connection)  # past the guard
            if isinstance(self._connection, HandlerConnection):
                with suppress(SQLAlchemyError):  # the server is gone, and what was not committed with it
                    self._connection.release()

    def _rolled_back(self) -> bool:
        """Undo what is not committed. False when it cannot be told that it is; the pool would log that as an error."""
        try:
            self._driver.rollback()
        except Exception:
            return False
        return True

    def begin(self) -> None:
        """Begin the transaction, if it has not begun."""
        if self._begun:
            return
        try:
            self._store.dialect.begin(self._driver, self._deadline)
        except Exception as error:
            if not self._store.dialect.lost(self._driver):
                raise self._store.classify(error) from error
            self._reconnect()
        self._begun = True

    def _reconnect(self) -> None:
        """A pooled connection died while it was idle: begin on a new one. Nothing was done on the old one."""
        try:
            Connection.invalidate(self._connection)  # past the guard
            if self._root is not None:  # SQLAlchemy's own, which belongs to the old one
                self._root.close()
                self._root = self._connection.begin()
            driver: Any = self._connection.connection.driver_connection
            self._driver, self._cursor = driver, driver.cursor()
            self._store.dialect.begin(self._driver, self._deadline)
        except Exception as error:
            raise self._store.classify(error) from error

    def _cause(self, error: BaseException) -> BaseException:
        """What an error means; a connection on which the store was away is not used again."""
        self._met = cause = self._store.classify(error)
        self._gone = isinstance(cause, StoreUnavailable)
        return cause

    def _execute(self, statement: str, parameters: Sequence[object] = ()) -> None:
        try:
            self._cursor.execute(statement, parameters)
        except Exception as error:
            raise self._cause(error) from error

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """The rows of a query, which sees what was written before."""
        self.send()
        self._execute(statement, parameters)
        try:
            return list(self._cursor.fetchall())
        except Exception as error:  # SQLite goes on working as it is asked for rows
            raise self._cause(error) from error

    def write(self, statement: str, rows: Iterable[Row]) -> None:
        """Run a statement once for each row of parameters, at the latest with the commit."""
        rows = list(rows)
        if self._waiting and self._waiting[-1][0] == statement:
            self._waiting[-1][1].extend(rows)
        elif rows:
            self._waiting.append((statement, rows))

    def send(self) -> None:
        """Run what waits. Kept until the end, all of it and the commit take one round trip."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.begin()
        for statement, rows in waiting:
            try:
                self._store.dialect.execute(self._cursor, statement, rows)
            except Exception as error:
                raise self._cause(error) from error


def envelope(message: Message) -> tuple[object, ...]:
    """The columns of a message, in the order of the tables."""
    return (
        message.source,
        message.id,
        message.channel,
        message.body,
        message.type,
        message.key,
        int(message.time * MICROSECOND),
        message.correlation,
        message.causation,
        to_json(message.headers).decode() if message.headers else None,
    )


def read_message(row: Any) -> Message:
    """The message of ten envelope columns, whoever wrote them: what is no envelope's passes as it is, to be found
    undecodable where messages are decoded. An error here would hit the whole batch, again and again."""
    source, id, channel, body, kind, key, time, correlation, causation, headers = row
    return Message(
        id,
        source,
        channel,
        body if isinstance(body, bytes) else str(body).encode("utf-8", "backslashreplace"),
        kind,
        key,
        seconds(time),
        correlation,
        causation,
        _read_headers(headers),
    )


def seconds(micros: Any) -> Any:
    """A time of the tables, where it is one."""
    return micros / MICROSECOND if isinstance(micros, int | float) else micros


def _read_headers(column: Any) -> Any:
    try:
        return json.loads(column) if column else {}
    except (ValueError, TypeError, RecursionError):
        return column
