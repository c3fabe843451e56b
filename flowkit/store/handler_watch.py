"""Watches a handler: each use of the transaction, by its connection or session, passes through here first."""

import re
from collections.abc import Sequence
from threading import Lock, get_ident
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, NestedTransaction

from flowkit.errors import Apart, FlowKitError, TransactionEnded
from flowkit.store.flushed import Flushed
from flowkit.store.handler_session import HandlerConnection, HandlerSession
from flowkit.store.handling import HandledTransaction
from flowkit.store.residue import Residue, residue

_VALUE = re.compile(r"(?:\b[eExXbBnN])?'(?:[^']|'')*'?|(\$\w*\$).*?(?:\1|$)|\b\d[\w.]*")
"""Text and number literals of a statement, which may be data."""


class HandlerWatch:
    """Lends a handler a Connection and a Session, on the connection of its unit, and watches what it does with them."""

    def __init__(self, unit: HandledTransaction) -> None:
        self.unit = unit
        self.used = False
        self._thread = get_ident()
        self._open = True
        self._closing = False
        self._undoing = False
        self._exposed = False
        """Whether the handler can write by the driver, unseen."""
        self._ground: list[Any] = []
        """The unit's `ground()` when the handler got the driver's connection."""
        self._savepoint: NestedTransaction | None = None
        self._returned = False
        self.turn = Lock()
        """Another thread holds this for its statement, so that it runs before the handler's end or not at all."""
        self._lent: HandlerConnection | None = None
        """The connection that messages use one after another. No handler gets it."""
        self._connection: HandlerConnection | None = None
        self._session: HandlerSession | None = None
        self._flushed: Flushed | None = None

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
        """Execute a statement for a session that is asleep."""
        self.touch()
        if self.elsewhere:  # the handler may return meanwhile, and the lent connection then serves another message
            return Connection.execute(self.connection, statement, params)
        if self._lent is None:
            self._lent = self.unit.lend(self)
        return Connection.execute(self._lent, statement, params)

    def flush(self, session: HandlerSession) -> None:
        """Note that a session is about to flush."""
        if self._flushed is None:
            self._flushed = Flushed()
        self._flushed.note(session)

    def hold(self, connection: HandlerConnection) -> None:
        """Note that the handler got this connection from a result or a listener, and uses it. Raises FlowKitError in
        another thread, which may have it from an earlier message."""
        if get_ident() != self._thread:
            raise FlowKitError(
                f"flow {self.unit.flow}: a thread uses the connection of a result, which may be another message's by "
                "now; take it from Session.connection()"
            )
        connection.held = True

    # ------------------------------------------------------------ what the handler does

    def touch(self) -> None:
        """Note that the handler uses the transaction. Raises FlowKitError if it has returned."""
        self.admit()
        if self._closing:
            return
        self.used = True
        savepoint = self._savepoint
        if self.unit.undone or (savepoint is not None and not savepoint.is_active and not self._undoing):
            raise self.unit.swallowed()
        self.unit.touch(self.follow)

    def admit(self) -> None:
        """Raise FlowKitError if the handler has returned: a thread that it left behind would write into the transaction
        of another message."""
        if not self._open or (self._returned and get_ident() != self._thread):
            raise FlowKitError(
                f"flow {self.unit.flow}: a session, connection or objects of a message were used after its handler had "
                "returned; wait in the handler for the threads that it starts, and keep nothing of the session"
            )

    @property
    def elsewhere(self) -> bool:
        """Whether the current thread is one that the handler started."""
        return get_ident() != self._thread

    def follow(self) -> None:
        """Move to the unit's new connection: the pooled one had died while it was idle."""
        for connection in self._connections:
            connection.move(self.unit.pooled)

    @property
    def _connections(self) -> list[HandlerConnection]:
        return [one for one in (self._connection, self._lent) if one is not None]

    def touch_own(self, what: str) -> None:
        """Prepare to read or write FlowKit's own tables for the handler. `what` names the call for the error.

        Raises FlowKitError if a role or path that the handler set may hide the tables.
        """
        self.touch()
        if self.unit.residue & Residue.SETTING or (self._exposed and self.unit.ground() != self._ground):
            raise FlowKitError(
                f"flow {self.unit.flow}: {what} was called after the handler had changed a setting or role of its "
                "transaction, which may hide FlowKit's tables; use the objects before that"
            )

    def nested(self) -> Connection | None:
        """Enter the savepoint that the handler has begun. Returns its connection; None if there is no such savepoint.

        A session sets its savepoint only at its first statement, and FlowKit's writes are no statements of the session.
        """
        session, connection = self._session, self._connection
        if session is not None and session.awake and session.in_nested_transaction():
            session.connection()
        if connection is None or connection.get_nested_transaction() in (None, self._savepoint):
            return None
        return connection

    def look(self, statement: str, cursor: Any) -> None:
        """Check a statement that the handler executes. Raises Apart if other messages of this transaction would see
        what it leaves."""
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
                f"flow {self.unit.flow}: `{_short(statement)}` leaves something in the server session, which a pooler "
                "in transaction mode shares with others; use a form that ends with the transaction (ON COMMIT DROP)"
            )
        if not self.unit.alone:
            self.unit.fail(Apart(_short(statement)))
        self.unit.residue |= left

    def postpone(self, statement: str, rows: Sequence[Any], outside: bool) -> bool:
        """Keep a statement, to send it together with others, and return True; or return False. `outside`: it is outside
        of the handler's savepoints."""
        return self.unit.postpone(statement, rows, outside and not self._exposed)

    def expose(self) -> None:
        """Note that the handler gets the driver's connection, or SQLAlchemy does for a rollback. Raises FlowKitError if
        others could get what it leaves in the server session."""
        if self.unit.undone:
            return
        self.touch()
        if not self.unit.private:
            raise FlowKitError(
                f"flow {self.unit.flow}: the driver's own connection may leave something in the server session, which "
                "a pooler in transaction mode shares with others; use the Session or Connection, or let "
                "FLOWKIT_DATABASE_URL name the server itself"
            )
        if not self.unit.alone:
            self.unit.fail(Apart("Connection.connection"))  # FlowKit cannot see what is done there
        self.unit.send()
        if not self._exposed:
            self._ground = self.unit.ground()
        self.unit.residue |= Residue.DRIVER
        self._exposed = True

    def note(self, error: BaseException) -> bool:
        """Note an error, and return whether the database refused a statement by it. A handler that continues after that
        has failed."""
        refused = isinstance(error, self.unit.refusals)
        if refused:
            self.unit.failure = error
            self.unit.undone = self.unit.undone or self.unit.rolled_back  # SQLite may roll back by itself
        return refused

    def undo(self) -> None:
        """Note that a session rolled the transaction back."""
        self.unit.undone = True

    # ------------------------------------------------------------ its end

    def _forget(self) -> None:
        """Release the session. That breaks its reference cycle with this access: no garbage is left to collect."""
        session, self._session = self._session, None
        if session is not None:
            self._closing = True
            session.release()

    def close(self) -> None:
        """Refuse every further use."""
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
