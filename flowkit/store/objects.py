"""Objects: what handlers keep under a key, in their own transaction."""

from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from flowkit import duration
from flowkit.errors import StoreConflict
from flowkit.fidelity import faithful
from flowkit.message import check_name

if TYPE_CHECKING:
    from flowkit.store.access import Access


class SqlObjects:
    """Implements ports.Objects for one message. `space` keeps apps apart."""

    def __init__(self, access: "Access", space: str) -> None:
        self._access = access
        self._unit = access.unit
        self._space = space
        self._read: dict[str, Any] = {}
        """Key -> the column as this message knows it; None where it knows that there is none."""

    def get(self, key: str) -> Any:
        self._access.touch_own("objects.get()")
        found = self._unit.read(self._unit.sql.get_object, (self._space, check_name("an object's key", key)))
        self._read.setdefault(key, found[0][0] if found else None)
        return from_json(found[0][0]) if found else None

    def put(self, key: str, value: Any, ttl: duration.Duration | None = None) -> None:
        body = faithful(value, f"object {key}")
        lasts = None if ttl is None else int(duration.seconds(ttl, "an object's ttl") * 1_000_000)
        row = (self._space, check_name("an object's key", key), body, lasts)
        self._access.touch_own("objects.put()")
        if key not in self._read:
            self._unit.write(self._unit.sql.put_object, [row])
            self._unit.send()  # now, inside the savepoint of its handler
            return
        read, sql = self._read[key], self._unit.sql
        if read is None:
            self._compare(key, sql.create_object, row)
        else:
            self._compare(key, sql.replace_object, (body, lasts, self._space, key, read))
        self._read[key] = body

    def delete(self, key: str) -> None:
        self._access.touch_own("objects.delete()")
        if key not in self._read:
            self._unit.write(self._unit.sql.delete_object, [(self._space, key)])
            self._unit.send()
        elif self._read[key] is not None:
            self._compare(key, self._unit.sql.remove_object, (self._space, key, self._read[key]))
            self._read[key] = None

    def _compare(self, key: str, statement: str, row: tuple[object, ...]) -> None:
        """Write what this message has read before. It waits for whoever writes the same key, and fails if that
        changed it: the message runs again, and reads what is there then."""
        if not self._unit.read(statement, row):
            self._unit.fail(StoreConflict(f"object {key} was changed by another transaction after it was read"))
