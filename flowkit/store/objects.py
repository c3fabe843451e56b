"""Objects: values that handlers keep under a key, in the transaction of their message."""

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
        """Prepare to read or write FlowKit's own tables for the handler. `what` names the call for errors."""

    def nested(self) -> Connection | None:
        """Enter the savepoint that the handler has begun. Returns its connection; None without such a savepoint."""


class Writer(Protocol):
    """The part of a transaction that objects need."""

    sql: Statements

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Return the rows of a query, which sees all earlier writes."""

    def write(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of parameters, with the commit at the latest."""

    def send(self) -> None:
        """Run the waiting statements."""

    def fail(self, error: BaseException) -> NoReturn:
        """Raise this error, now and at each later use."""


class SqlObjects:
    """Implements ports.Objects for one message. `space` separates the objects of different apps."""

    def __init__(self, handler: Handler, unit: Writer, space: str) -> None:
        self._handler = handler
        self._unit = unit
        self._space = space
        self._read: dict[str, bytes | None] = {}
        """Key -> the value of others that this message read first; None if there was none."""
        self._own: dict[str, bytes | None] = {}
        """Key -> the value that this message has put since; None if it has deleted the object."""
        self._outside: dict[str, bytes | None] | None = None
        """A copy of `_own` from before the first write inside a savepoint of the handler; None until then."""
        self._marks: list[dict[str, bytes | None]] = []
        """A copy of `_own` for each open savepoint that was set after that."""

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
        """Return the value that this message expects under a key that it has read."""
        return self._own[key] if key in self._own else self._read[key]

    def _enter(self) -> None:
        """Enter the savepoint that the handler has begun, and remember which writes it would undo."""
        connection = self._handler.nested()
        if self._outside is None and connection is not None:
            self._outside = dict(self._own)
            event.listen(connection, "savepoint", self._mark)
            event.listen(connection, "rollback_savepoint", self._undo)
            event.listen(connection, "release_savepoint", self._keep)

    def _mark(self, connection: Connection, name: None) -> None:
        self._marks.append(dict(self._own))

    def _undo(self, connection: Connection, name: str, context: None) -> None:
        """Forget the writes that the database has undone: those since the savepoint was set."""
        self._own = self._marks.pop() if self._marks else dict(self._outside or {})

    def _keep(self, connection: Connection, name: str, context: None) -> None:
        if self._marks:
            self._marks.pop()

    def _compare(self, key: str, statement: str, row: tuple[object, ...]) -> None:
        """Write an object that this message has read. Waits for another transaction that writes the same key, and fails
        if that changed it: the message runs again, and reads the new value."""
        if not self._unit.read(statement, row):
            self._unit.fail(StoreConflict(f"object {key} was changed by another transaction after it was read"))
