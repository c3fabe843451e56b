"""Access to a unit of work: the Connection, Session and Objects that one handler gets while it runs."""

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from sqlalchemy import Connection

from flowkit.ports import Asked, Objects
from flowkit.store.handler_session import HandlerSession
from flowkit.store.handler_watch import HandlerWatch
from flowkit.store.handling import HandledTransaction
from flowkit.store.objects import SqlObjects
from flowkit.store.residue import Residue
from flowkit.store.twin import twin

FLUSHES = 100
"""The most flushes when a session finishes, as in SQLAlchemy's commit: listeners may add objects at each."""


class Access(HandlerWatch):
    """Implements ports.Access: a Connection, a Session and Objects of one message, on the connection of its unit.

    With `careful`, the end of a failed handler undoes its own writes; without, the whole unit must be undone.
    """

    def __init__(self, unit: HandledTransaction, careful: bool = False) -> None:
        super().__init__(unit)
        self._careful = careful
        self._finished = False
        self.undone = False
        """Whether the handler's writes are undone, while its unit continues."""

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
        if self._is_untouched:
            self.close()
            return
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

    def give(self, wanted: type) -> object:
        if wanted is Objects:
            return SqlObjects(self, self.unit, self.unit.space)
        return self.connection if wanted is Connection else self.session

    # ------------------------------------------------------------ its end

    @property
    def _is_untouched(self) -> bool:
        """Whether the handler has neither used the transaction nor got anything by which it could."""
        given = self._session or self._connection or self._lent
        return given is None and not self.used and not self._careful

    def finish(self) -> None:
        """Send the writes of a handler that has returned, and restore the settings that it changed."""
        if self._is_untouched:
            return
        self._check()
        if self._finished:
            return
        self._finished = True
        if self._session is not None:
            self._finish_session(self._session)
        if self.unit.settings or self.unit.residue & ~Residue.PASSING:  # it may have changed one by the driver, unseen
            self.unit.restore()

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        self.touch()
        self.unit.write(self.unit.sql.put_reply, [(self.unit.space, *asked, reply, int(seconds * 1_000_000))])
        self.unit.send()  # now, inside the savepoint of its handler

    def _finish_session(self, session: HandlerSession) -> None:
        if not session.awake and (session.added or session.marked):
            if self._careful or self.unit.alone or session.marked or not self._gather(session.added):
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

    def _gather(self, objects: Sequence[object]) -> bool:
        """Let copies of these objects be flushed later, with those of other messages. Returns False if they must be
        flushed now."""
        twins = [twin(one) for one in objects]
        if None in twins:
            return False
        if self.unit.common is None:
            self.unit.common = Access(self.unit).session
            self.unit.common.wake()
        self.unit.common.gather(twins)
        return True

    def _check(self) -> None:
        """Raise if the handler caught a database error and continued with half of its work."""
        for connection in self._connections:
            failure = next((one for one in connection.failures if one is not None), None)
            if failure is not None or (self._savepoint is not None and not self._savepoint.is_active):
                raise self.unit.swallowed(failure)
        broken = self.unit.broken()
        if broken is not None:
            raise broken

    def _release(self) -> None:
        """Release the savepoints that the handler left open, and its own."""
        session, connection = self._session, self._connection
        if session is not None and session.awake:
            for nested in iter(session.get_nested_transaction, None):
                nested.commit()
        if connection is not None:
            for savepoint in iter(connection.get_nested_transaction, None):
                savepoint.commit()

    def _undo(self) -> None:
        """Undo the handler's writes, if it has a savepoint. Without one, the whole unit is undone."""
        session, connection = self._session, self._connection
        if session is not None and session.awake:
            self.unit.tell(session, "after_rollback")
        self._undoing = True
        if self._savepoint is None or connection is None:
            return
        with suppress(Exception):  # from SQLAlchemy's state or a listener: only the next step matters
            for savepoint in iter(connection.get_nested_transaction, None):
                savepoint.rollback()
        self.unit.undo_own()
        self.undone = True
