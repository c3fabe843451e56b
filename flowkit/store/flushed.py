"""The objects that sessions have flushed: they are what they were before, once that is undone."""

from contextlib import suppress
from typing import Self

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, make_transient


class Flushed:
    """Some objects. A handler may keep them for its next run, or for another message."""

    def __init__(self) -> None:
        self._new: list[object] = []
        self._changed: list[object] = []

    def note(self, session: Session) -> None:
        """A session is about to flush."""
        self._new += session.new
        self._changed += session.dirty

    def __iadd__(self, other: "Flushed") -> Self:
        self._new += other._new
        self._changed += other._changed
        return self

    def clear(self) -> None:
        """All of it is committed."""
        self._new.clear()
        self._changed.clear()

    def undo(self) -> None:
        """The transaction is undone, and the sessions are closed: as `Session.rollback` does, let the new objects be
        inserted when they are added again, and the changed ones be read anew. Else the next flush writes nothing."""
        for one in self._new:
            make_transient(one)
        for one in self._changed:
            if inspect(one).detached:
                with Session() as session, suppress(InvalidRequestError):  # another session has it, or its relatives
                    session.add(one)
                    session.expire(one)
        self.clear()
