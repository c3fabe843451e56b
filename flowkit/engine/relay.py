"""The relay: sends committed message rows that are due, be they delayed, retried, or left by a dead worker."""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence

from flowkit.ports import Clock, Copy, Delivery, Receipt, Store, Transport

BATCH = 100
PARK_SECONDS = 30.0
"""A row that was refused is due again after this at the latest, or when its queue is declared; the first times sooner:
a queue without a leader refuses too, and has one in a moment."""
DOUBTFUL = 3
"""A row that was leased so often and is still not confirmed has a broker that cannot keep up: more would not help."""
REMOVE_SECONDS = 0.5
"""While there is more to send, rows that were taken stay for so long: their removal is a transaction of its own."""
CLOGGED = 10_000
"""So many messages that cannot be sent are enough: no more are received until they are."""


class Relay:
    """Carries due rows to a transport that is not the store itself. One thread at a time may step it."""

    def __init__(self, store: Store, transport: Transport, clock: Clock, worker: str) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._worker = worker
        self.carried: deque[tuple[str, int]] = deque()
        """Rows that the transport took, to be removed. Any thread may add some."""
        self._removed = 0.0
        self.told: Collection[str] = ()
        """The flows that have due rows, as somebody said; without news all are looked at."""
        self.clogged = False
        """Whether so much waits to be sent that no more should be produced."""

    def step(self) -> bool:
        """Send one batch of each flow that has due rows. False when a look at all flows found none."""
        if not self._transport.hops:
            return False
        if not self._transport.ready:
            self.flush()
            self.clogged = self._store.ledger.pending(list(self._store.subscribers.channels())).now >= CLOGGED
            return False
        self.clogged = False
        due, self.told = self.told or self._store.queue.due(), ()
        if not due or self._clock.monotonic() - self._removed >= REMOVE_SECONDS:
            self.flush()
        for flow in sorted(due):
            # Leased by a committed update before it is sent, so that no other relay sends it too.
            rows = self._store.queue.lease(flow, BATCH, self._worker, self._transport.lease)
            receipts = self._transport.send([_copy(one) for one in rows])
            tokens = {str(one.row): one.deliveries for one in rows}
            self.carried += record(self._store, receipts, tokens)
        return bool(due)

    def flush(self) -> None:
        """Remove the rows that the transport took."""
        rows = list(self.carried)
        if rows:
            with self._store.unit("") as unit:
                unit.remove(rows)
                unit.commit()
            for _ in rows:
                self.carried.popleft()
        self._removed = self._clock.monotonic()


def record(store: Store, receipts: Sequence[Receipt], tokens: Mapping[str, int]) -> list[tuple[str, int]]:
    """Act on what the transport said. Returns the rows that it carried away, as (row, token); they can be removed.

    One that it refuses is parked, with the reason, for longer the more often it was leased. Any other is sent again as
    soon as somebody can: the transport waited for it, or lost it; the third time it is parked as well.
    """
    carried: list[tuple[str, int]] = []
    parked: dict[float, dict[tuple[str, int], str]] = defaultdict(dict)
    left: list[tuple[str, int]] = []
    for copy, confirmed, reason in receipts:
        row = (copy.row, tokens[copy.row])
        if confirmed:
            carried.append(row)
        elif reason or row[1] >= DOUBTFUL:
            parked[min(PARK_SECONDS, 2.0 ** min(row[1], 8))][row] = reason or "it was sent, and not confirmed in time"
        else:
            left.append(row)
    for seconds, rows in parked.items():
        store.queue.park(rows, seconds)
    if left:
        store.queue.release(left)
    return carried


def _copy(row: Delivery) -> Copy:
    return Copy(str(row.row), row.message, row.flow, row.generation, row.attempts, staged=row.staged)
