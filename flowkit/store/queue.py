"""The queue: workers take due message rows under leases."""

from collections.abc import Collection, Mapping
from typing import Any

from flowkit.ports import Delivery
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND, names, read_message, seconds


class Queue:
    """Implements ports.Queue. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lease(self, flow: str, limit: int, worker: str, seconds: float) -> list[Delivery]:
        with self._database.unit(flow) as unit:
            if self._database.fence is not None or self._database.dialect.serial:
                unit.begin()  # without it, the single statement is its own transaction
            rows = unit.read(self._database.sql.lease, (flow, limit, int(seconds * MICROSECOND), worker))
            unit.commit()
        # RETURNING has no order. Row ids are UUIDv7, so that sorting by them gives the order of staging.
        return [_delivery(row) for row in sorted(rows, key=lambda row: str(row[0]))]

    def renew(self, rows: Collection[tuple[str, int]], seconds: float) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.renew, [(int(seconds * MICROSECOND), *row) for row in sorted(rows)])

    def release(self, rows: Collection[tuple[str, int]]) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.release, sorted(rows))

    def park(self, rows: Mapping[tuple[str, int], str], seconds: float) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.park, [(int(seconds * MICROSECOND), rows[row], *row) for row in sorted(rows)])

    def unpark(self, flows: Collection[str]) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.unpark, [(names(sorted(flows)),)])

    def due(self, flows: Collection[str] | None = None) -> set[str]:
        with self._database.unit("") as unit:
            if flows is None:
                found = unit.read(self._database.sql.due_of_all)
            else:
                found = unit.read(self._database.sql.due, (names(sorted(flows)),))
            return {flow for (flow,) in found}


def _delivery(row: Any) -> Delivery:
    return Delivery(
        message=read_message(row[2:12]),
        flow=row[1],
        generation=row[12],
        attempts=row[13],
        deliveries=row[14],
        staged=seconds(row[15]),
        row=row[0],
    )
