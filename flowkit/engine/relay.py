"""The relay: sends committed message rows that are due, be they delayed, retried, or left by a dead worker."""

from collections.abc import Callable, Collection

from flowkit.engine.pipeline import PARK_SECONDS
from flowkit.ports import Copy, Store, Transport

BATCH = 100


class Relay:
    """Carries due rows to a transport that is not the store itself. One thread at a time may step it."""

    def __init__(self, store: Store, transport: Transport, worker: str, flows: Callable[[], Collection[str]]) -> None:
        self._store = store
        self._transport = transport
        self._worker = worker
        self._flows = flows

    def step(self) -> bool:
        """Send one batch of each flow that has due rows. False when nothing was due."""
        if not self._transport.lease:
            return False
        due = self._store.due(self._flows())
        for flow in sorted(due):
            # Leased by a committed update before it is sent, so that no other relay sends it too.
            rows = self._store.lease(flow, BATCH, self._worker, self._transport.lease)
            copies = [Copy(str(one.row), one.message, one.flow, one.generation, one.attempts) for one in rows]
            token = {str(one.row): (str(one.row), one.deliveries) for one in rows}
            receipts = self._transport.send(copies)
            with self._store.unit(flow) as unit:
                unit.remove([token[one.copy.row] for one in receipts if one.confirmed])
                unit.commit()
            parked = {token[one.copy.row]: one.reason for one in receipts if not one.confirmed and one.reason}
            if parked:
                self._store.park(parked, PARK_SECONDS)
        return bool(due)
