"""Objects: what handlers keep under a key, in their own transaction."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Protocol

from pydantic_core import from_json
from sqlalchemy import Connection, event

from flowkit import duration
from flowkit.errors import StoreConflict
from flowkit.fidelity import faithful
from flowkit.message import check_name
from flowkit.store.statements import Statements


class Handler(Protocol):
    """The part of a handler's access that objects need."""

    def touch_own(self, what: str) -> None:
        """FlowKit is to read or write its own tables for the handler, which called `what`."""

    def nested(self) -> Connection | None:
        """Be inside of the savepoint that the handler has begun: its connection, or None where it has begun none."""


class Writer(Protocol):
    """The part of a transaction that objects need."""

    sql: Statements

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """The rows of a query, which sees what was written before."""

    def write(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of parameters, at the latest with the commit."""

    def send(self) -> None:
        """Run what waits."""

    def fail(self, error: BaseException) -> NoReturn:
        """Raise this, now and at each later use."""


class SqlObjects:
    """Implements ports.Objects for one message. `space` keeps apps apart."""

    def __init__(self, handler: Handler, unit: Writer, space: str) -> None:
        self._handler = handler
        self._unit = unit
        self._space = space
        self._read: dict[str, bytes | None] = {}
        """Key -> what others have put there, when this message read it first; None where there was none."""
        self._own: dict[str, bytes | None] = {}
        """Key -> what this message has put there since; None where it has deleted it."""
        self._outside: dict[str, bytes | None] | None = None
        """Its own when it wrote inside of a savepoint of the handler's for the first time; None before that."""
        self._marks: list[dict[str, bytes | None]] = []
        """Its own as each savepoint was set that is open, but for those from before."""

    def get(self, key: str) -> Any:
        self._handler.touch_own("objects.get()")
        found = self._unit.read(self._unit.sql.get_object, (self._space, check_name("an object's key", key)))
        body = found[0][0] if found else None
        if key not in self._own or body not in (None, self._own[key]):
            self._read.setdefault(key, body)
        return from_json(found[0][0]) if found else None

    def put(self, key: str, value: Any, ttl: duration.Duration | None = None) -> None:
        body = faithful(value, f"object {key}")
        lasts = None if ttl is None else int(duration.seconds(ttl, "an object's ttl") * 1_000_000)
        row = (self._space, check_name("an object's key", key), body, lasts)
        self._handler.touch_own("objects.put()")
        self._enter()
        sql = self._unit.sql
        if key not in self._read and self._own.get(key, b"") is not None:
            self._unit.write(sql.put_object, [row])
            self._unit.send()  # now, inside the savepoint of its handler
        elif (known := self._known(key)) is None:
            self._compare(key, sql.create_object, row)
        else:
            self._compare(key, sql.replace_object, (body, lasts, self._space, key, known))
        self._own[key] = body

    def delete(self, key: str) -> None:
        self._handler.touch_own("objects.delete()")
        self._enter()
        if key not in self._read:
            self._unit.write(self._unit.sql.delete_object, [(self._space, key)])
            self._unit.send()
        elif (known := self._known(key)) is not None:
            self._compare(key, self._unit.sql.remove_object, (self._space, key, known))
        self._own[key] = None

    def _known(self, key: str) -> bytes | None:
        """The value that this message, which has read the key, takes to be there."""
        return self._own[key] if key in self._own else self._read[key]

    def _enter(self) -> None:
        """Be inside of the savepoint that the handler has begun, and remember what is undone with it."""
        connection = self._handler.nested()
        if self._outside is None and connection is not None:
            self._outside = dict(self._own)
            event.listen(connection, "savepoint", self._mark)
            event.listen(connection, "rollback_savepoint", self._undo)
            event.listen(connection, "release_savepoint", self._keep)

    def _mark(self, connection: Connection, name: None) -> None:
        self._marks.append(dict(self._own))

    def _undo(self, connection: Connection, name: str, context: None) -> None:
        """Forget what the database has undone: all that was put here since the savepoint was set."""
        self._own = self._marks.pop() if self._marks else dict(self._outside or {})

    def _keep(self, connection: Connection, name: str, context: None) -> None:
        if self._marks:
            self._marks.pop()

    def _compare(self, key: str, statement: str, row: tuple[object, ...]) -> None:
        """Write what this message has read before. It waits for whoever writes the same key, and fails if that
        changed it: the message runs again, and reads what is there then."""
        if not self._unit.read(statement, row):
            self._unit.fail(StoreConflict(f"object {key} was changed by another transaction after it was read"))
