"""Objects: what handlers keep under a key, in their own transaction."""

from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from flowkit import duration
from flowkit.message import check_name

if TYPE_CHECKING:
    from flowkit.store.access import Access


class SqlObjects:
    """Implements ports.Objects for one message. `space` keeps apps apart."""

    def __init__(self, access: "Access", space: str) -> None:
        self._access = access
        self._unit = access.unit
        self._space = space

    def get(self, key: str) -> Any:
        self._access.touch_own("objects.get()")
        found = self._unit.read(self._unit.sql.get_object, (self._space, check_name("an object's key", key)))
        return from_json(found[0][0]) if found else None

    def put(self, key: str, value: Any, ttl: duration.Duration | None = None) -> None:
        try:
            body = to_json(value)
        except PydanticSerializationError as error:
            raise TypeError(f"object {key}: {error}") from None
        lasts = None if ttl is None else int(duration.seconds(ttl, "an object's ttl") * 1_000_000)
        self._access.touch_own("objects.put()")
        self._unit.write(self._unit.sql.put_object, [(self._space, check_name("an object's key", key), body, lasts)])
        self._unit.send()  # now, inside the savepoint of its handler

    def delete(self, key: str) -> None:
        self._access.touch_own("objects.delete()")
        self._unit.write(self._unit.sql.delete_object, [(self._space, key)])
        self._unit.send()
