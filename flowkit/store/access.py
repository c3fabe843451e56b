"""Access to a unit of work: the objects that one handler gets, for as long as it runs."""

import re
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock, get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, CursorResult, Executable, NestedTransaction

from flowkit.errors import Apart, FlowKitError, TransactionEnded
from flowkit.ports import Asked, Objects
from flowkit.store.flushed import Flushed
from flowkit.store.handler_session import HandlerConnection, HandlerSession
from flowkit.store.objects import SqlObjects
from flowkit.store.residue import Residue, residue

if TYPE_CHECKING:
    from flowkit.store.unit import SqlUnit

HOOKS = (
    "do_orm_execute", "before_flush", "after_flush", "after_flush_postexec", "before_commit", "after_commit",
    "after_rollback", "after_soft_rollback", "after_begin", "before_attach", "after_attach", "transient_to_pending",
    "pending_to_persistent", "after_transaction_create", "after_transaction_end",
)  # fmt: skip
"""Events by which an app sees the session of a message, and what is flushed with it."""
FLUSHES = 100
"""Most flushes of a session at its end, as in a commit of SQLAlchemy's: listeners may add to it at each."""
_VALUE = re.compile(r"(?:\b[eExXbBnN])?'(?:[^']|'')*'?|(\$\w*\$).*?(?:\1|$)|\b\d[\w.]*")
"""Texts and numbers of a statement, which may be data."""
_ANY = HandlerSession.__new__(HandlerSession)
"""A session as good as any: whoever listens to all of them listens to this one."""


def hooked() -> bool:
    """Whether the app listens to sessions: then each message's is flushed by itself."""
    return any(getattr(_ANY.dispatch, name) for name in HOOKS)


class Access:
    """Implements ports.Access: a Connection, a Session and Objects of one message, on the connection of its unit.

    With `careful`, what a failed handler wrote is undone at its end; else its whole unit has to be.
    """

    def __init__(self, unit: "SqlUnit", careful: bool = False) -> None:
        self.unit = unit
        self.used = False
        self._careful = careful
        self._thread = get_ident()
        self._open = True
        self._closing = False
        self._finished = False
        self._undoing = False
        self.undone = False
        """Whether all that the handler wrote is undone, though its unit goes on."""
        self._exposed = False
        """Whether the handler may write by the driver, unseen."""
        self._ground: list[Any] = []
        """That of the unit as the handler got the driver."""
        self._savepoint: NestedTransaction | None = None
        self._returned = False
        self.turn = Lock()
        """Held for a statement of another thread, so that it comes before the handler's end or not at all."""
        self._lent: HandlerConnection | None = None
        """The connection that messages use in turns, and no handler gets."""
        self._connection: HandlerConnection | None = None
        self._session: HandlerSession | None = None
        self._flushed: Flushed | None = None

    def __enter__(self) -> "Access":
        if self._careful:
            self.touch()
            self.unit.set_own()
            self._savepoint = self.connection.begin_nested()
            self.used = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.turn:
            self._returned = True
        self.unit.close_cursors()
        try:
            if error is None:
                self.finish()
                self._release()
                self._forget()
        except BaseException:
            self._undo()
            raise
        else:
            if error is not None:
                self._undo()
            elif self._careful:
                self.unit.release_own()
        finally:
            self.close()

    # ------------------------------------------------------------ objects for the handler

    def give(self, wanted: type) -> object:
        if wanted is Objects:
            return SqlObjects(self, self.unit.space)
        return self.connection if wanted is Connection else self.session

    @property
    def connection(self) -> HandlerConnection:
        """The connection of this message alone, which the handler may keep."""
        if self._connection is None:
            self.admit()
            self._connection = HandlerConnection(self.unit.engine, self.unit.pooled, self)
            self._connection.held = True
        return self._connection

    @property
    def session(self) -> HandlerSession:
        if self._session is None:
            self._session = HandlerSession(self)
            if self.unit.hooked:
                self._session.wake()
        return self._session

    def execute(self, statement: Executable, params: Any) -> CursorResult[Any]:
        """Execute a statement for a session that is one in name only."""
        self.touch()
        if self.elsewhere:  # it may be amid this as the handler returns, and the lent one be another message's then
            return Connection.execute(self.connection, statement, params)
        if self._lent is None:
            self._lent = self.unit.lend(self)
        return Connection.execute(self._lent, statement, params)

    def flush(self, session: HandlerSession) -> None:
        """A session is about to flush."""
        if self._flushed is None:
            self._flushed = Flushed()
        self._flushed.note(session)

    def hold(self, connection: HandlerConnection) -> None:
        """A result or a listener gave the connection away, and it is used. Raises FlowKitError in another thread, which
        may have it from an earlier message."""
        if get_ident() != self._thread:
            raise FlowKitError(
                f"flow {self.unit.flow}: a thread uses the connection of a result, which may be another message's by "
                "now; take it from Session.connection()"
            )
        connection.held = True

    # ------------------------------------------------------------ what the handler does

    def touch(self) -> None:
        """The handler uses the transaction. Raises FlowKitError when it has returned."""
        self.admit()
        if self._closing:
            return
        self.used = True
        savepoint = self._savepoint
        if self.unit.undone or (savepoint is not None and not savepoint.is_active and not self._undoing):
            raise self.unit.swallowed()
        self.unit.touch(self)

    def admit(self) -> None:
        """Raise FlowKitError when the handler has returned: a thread that it left behind would write into the
        transaction of another message."""
        if not self._open or (self._returned and get_ident() != self._thread):
            raise FlowKitError(
                f"flow {self.unit.flow}: a session, connection or objects of a message were used after its handler had "
                "returned; wait in the handler for the threads that it starts, and keep nothing of its session"
            )

    @property
    def elsewhere(self) -> bool:
        """Whether a thread that the handler started runs this."""
        return get_ident() != self._thread

    def follow(self) -> None:
        """The transaction begins on another connection, since the pooled one had died while it was idle."""
        for connection in self._connections:
            connection.move(self.unit.pooled)

    @property
    def _connections(self) -> list[HandlerConnection]:
        return [one for one in (self._connection, self._lent) if one is not None]

    def touch_own(self, what: str) -> None:
        """FlowKit is to read or write its own tables for the handler, whose role or path must not hide them."""
        self.touch()
        if self.unit.residue & Residue.SETTING or (self._exposed and self.unit.ground() != self._ground):
            raise FlowKitError(
                f"flow {self.unit.flow}: {what} was called after the handler had changed a setting or role of its "
                "transaction, with which FlowKit's tables may not be found; use the objects before that"
            )

    def look(self, statement: str, cursor: Any) -> None:
        """The handler executes a statement. Raises Apart when others in this transaction would meet what it leaves."""
        self.admit()
        if self.unit.cursors is not None:
            self.unit.cursors.add(cursor)
        if self.unit.rolled_back:
            self.unit.fail(TransactionEnded("the handler ended the transaction by the driver"))
        self.unit.flush_common(self)
        left = residue(statement)
        if not left:
            return
        if left & Residue.LASTING and not self.unit.private:
            raise FlowKitError(
                f"flow {self.unit.flow}: `{_short(statement)}` leaves something in the session at the server, which a "
                "pooler in transaction mode gives to others; use what ends with the transaction (ON COMMIT DROP)"
            )
        if not self.unit.alone:
            self.unit.fail(Apart(_short(statement)))
        self.unit.residue |= left

    def postpone(self, statement: str, rows: Sequence[Any], outside: bool) -> bool:
        """Whether a statement waits, to go together with others like it. `outside`: of savepoints of the handler's."""
        return self.unit.postpone(statement, rows, outside and not self._exposed)

    def expose(self) -> None:
        """The handler gets the driver's connection, or SQLAlchemy does, to roll back. Raises FlowKitError where others
        would get what it leaves in the session, unseen."""
        if self.unit.undone:
            return
        self.touch()
        if not self.unit.private:
            raise FlowKitError(
                f"flow {self.unit.flow}: the driver's own connection may leave something in the session at the server, "
                "which a pooler in transaction mode gives to others; execute by the Session or Connection, or let "
                "FLOWKIT_DATABASE_URL name the server itself"
            )
        if not self.unit.alone:
            self.unit.fail(Apart("Connection.connection"))  # nobody sees what is done there
        self.unit.send()
        if not self._exposed:
            self._ground = self.unit.ground()
        self.unit.residue |= Residue.DRIVER
        self._exposed = True

    def note(self, error: BaseException) -> bool:
        """Whether this is what the database refused: a handler that goes on all the same has failed."""
        refused = isinstance(error, self.unit.refusals)
        if refused:
            self.unit.failure = error
            self.unit.undone = self.unit.undone or self.unit.rolled_back  # SQLite may do so by itself
        return refused

    # ------------------------------------------------------------ its end

    def finish(self) -> None:
        """The handler has returned: send what it wrote, and put back the settings that it changed."""
        self._check()
        if self._finished:
            return
        self._finished = True
        if self._session is not None:
            self._finish_session(self._session)
        if self.unit.settings or self.unit.residue & ~Residue.PASSING:  # by the driver it may have changed one, unseen
            self.unit.restore()

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        self.touch()
        self.unit.write(self.unit.sql.put_reply, [(self.unit.space, *asked, reply, int(seconds * 1_000_000))])
        self.unit.send()  # now, inside the savepoint of its handler

    def _finish_session(self, session: HandlerSession) -> None:
        if not session.awake and (session.added or session.marked):
            if self._careful or self.unit.alone or session.marked or not self.unit.gather(session.added):
                session.wake()
            session.added = []
        if session.awake:
            session.dispatch.before_commit(session)
            for _ in range(FLUSHES):
                session.flush()
                if not (session.new or session.dirty or session.deleted):
                    break
            if session.dispatch.after_commit or session.dispatch.after_rollback:
                self.unit.sessions.append(session)

    def _check(self) -> None:
        """See whether the handler caught an error of the database, and went on with half of its work."""
        for connection in self._connections:
            failure = next((one for one in connection.failures if one is not None), None)
            if failure is not None or (self._savepoint is not None and not self._savepoint.is_active):
                raise self.unit.swallowed(failure)
        broken = self.unit.broken()
        if broken is not None:
            raise broken

    def _release(self) -> None:
        """Keep what savepoints hold: those that the handler left open, and its own."""
        session, connection = self._session, self._connection
        if session is not None and session.awake:
            for nested in iter(session.get_nested_transaction, None):
                nested.commit()
        if connection is not None:
            for savepoint in iter(connection.get_nested_transaction, None):
                savepoint.commit()

    def _undo(self) -> None:
        """Undo the handler, where it has a savepoint. Else its whole unit is undone."""
        session, connection = self._session, self._connection
        if session is not None and session.awake:
            self.unit.tell(session, "after_rollback")
        self._undoing = True
        if self._savepoint is None or connection is None:
            return
        with suppress(Exception):  # of SQLAlchemy's state, or a listener's: what counts is the next step
            for savepoint in iter(connection.get_nested_transaction, None):
                savepoint.rollback()
        self.unit.undo_own()
        self.undone = True

    def _forget(self) -> None:
        """Let the session go, and with it this access: without, no garbage is left to find."""
        session, self._session = self._session, None
        if session is not None:
            self._closing = True
            session.release()

    def close(self) -> None:
        """Let nobody use it any more."""
        lent, self._lent, self._connection = self._lent, None, None
        self._closing = True
        try:
            self._forget()
        finally:
            self._open = False
            if self._flushed is not None:
                if self._undoing:
                    self._flushed.undo()
                else:
                    self.unit.flushed += self._flushed
            if lent is not None and lent.spare:
                self.unit.spare = lent


def _short(statement: str) -> str:
    return _VALUE.sub("…", " ".join(statement.split()))[:80]
