"""The objects that sessions have flushed. A rollback restores their state of before the flush."""

from contextlib import suppress
from typing import Self

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, make_transient


class Flushed:
    """Flushed objects. A handler may keep them for its next run, or for another message."""

    def __init__(self) -> None:
        self._new: list[object] = []
        self._changed: list[object] = []

    def note(self, session: Session) -> None:
        """Note the objects of a session that is about to flush."""
        self._new += session.new
        self._changed += session.dirty

    def __iadd__(self, other: "Flushed") -> Self:
        self._new += other._new
        self._changed += other._changed
        return self

    def clear(self) -> None:
        """Forget the objects: they are committed."""
        self._new.clear()
        self._changed.clear()

    def undo(self) -> None:
        """Reset the objects after a rollback, when their sessions are closed, as `Session.rollback` does.

        New objects are inserted when they are added again; changed objects are read again. Without this, the next flush
        would write nothing.
        """
        for one in self._new:
            make_transient(one)
        for one in self._changed:
            if inspect(one).detached:
                with Session() as session, suppress(InvalidRequestError):  # another session has it, or a related object
                    session.add(one)
                    session.expire(one)
        self.clear()
