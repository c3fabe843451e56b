"""The rules of objects: no update is lost."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from flowkit.errors import StoreConflict
from flowkit.ports import Objects, Unit
from flowkit.testing.conformance.kit import DEADLINE_SECONDS, FLOW, StoreKit, raises


def objects_of(unit: Unit) -> Objects:
    """The objects of a handler."""
    return cast(Objects, unit.access().give(Objects))


class ObjectsConformance(StoreKit):
    """The rules of objects: no update is lost."""

    def count_up(self, times: int) -> None:
        """Add one to an object so many times, again after each conflict."""
        while times:
            with suppress(StoreConflict), self.store.unit(FLOW) as unit:
                objects = objects_of(unit)
                objects.put("count", (objects.get("count") or 0) + 1)
                unit.commit()
                times -= 1

    def test_row_b2_no_update_of_an_object_is_lost(self) -> None:
        counters = [threading.Thread(target=self.count_up, args=(25,)) for _ in range(4)]
        for one in counters:
            one.start()
        for one in counters:
            one.join(DEADLINE_SECONDS)
        with self.store.unit(FLOW) as unit:
            assert objects_of(unit).get("count") == 100

    def conflicts(self, before: object, after: object, change: Callable[[Any], object]) -> bool:
        """Whether the store refuses a change of an object that another one has changed since it was read."""
        self.write("object", before)
        with self.store.unit(FLOW) as unit:
            objects = objects_of(unit)
            assert objects.get("object") == before
            self.write("object", after)
            refused = raises(StoreConflict, lambda: change(objects))
            assert not refused or raises(StoreConflict, unit.commit), "the handler may have caught it"
        return refused

    def test_row_b2_an_object_that_changed_since_it_was_read_is_not_written(self) -> None:
        if self.store.serial:
            return  # one writer at a time: nothing changes once an object is read
        for before, after in ((1, 2), (1, None), (None, 2)):
            assert self.conflicts(before, after, lambda objects: objects.put("object", 3))
        for after in (2, None):
            assert self.conflicts(1, after, lambda objects: objects.delete("object"))
        assert not self.conflicts(None, 2, lambda objects: objects.delete("object")), "there was nothing to delete"

    def write(self, key: str, value: object) -> None:
        """Put an object, or delete it, without a look."""
        with self.store.unit(FLOW) as unit:
            objects = objects_of(unit)
            objects.delete(key) if value is None else objects.put(key, value)
            unit.commit()
