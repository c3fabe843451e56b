"""The relay: sends message rows that are committed and due: delayed ones, retries, and those of dead workers."""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence

from flowkit.ports import Clock, Copy, Delivery, Receipt, Store, Transport

BATCH = 100
PARK_SECONDS = 30.0
"""The most seconds until a row that the transport refused is due again. It is due at once when its queue is declared,
and sooner after the first refusals: a queue without a leader refuses too, and gets a leader soon."""
DOUBTFUL = 3
"""The number of leases after which a row that is not confirmed is parked: its broker cannot keep up."""
REMOVE_SECONDS = 0.5
"""Seconds that rows which the transport took may stay while there is more to send. Their removal is a transaction."""
CLOGGED = 10_000
"""The number of messages that cannot be sent at which lanes receive no more."""


class Relay:
    """Sends due rows by a transport that is not the store itself. One thread at a time may step it."""

    def __init__(self, store: Store, transport: Transport, clock: Clock, worker: str) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._worker = worker
        self.carried: deque[tuple[str, int]] = deque()
        """Rows that the transport took, and that are to be removed, as (row, token). Any thread may add some."""
        self._removed = 0.0
        self.told: Collection[str] = ()
        """The flows that have due rows, by the store's news. If empty, the relay looks for rows of all flows."""
        self.clogged = False
        """Whether too many messages wait to be sent for lanes to receive more."""

    def step(self) -> bool:
        """Send one batch of each flow that has due rows. Returns False if there were none. Blocks."""
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
            # An update that commits leases each row before it is sent, so that no other relay sends it too.
            rows = self._store.queue.lease(flow, BATCH, self._worker, self._transport.lease)
            receipts = self._transport.send([_copy(one) for one in rows])
            tokens = {str(one.row): one.deliveries for one in rows}
            self.carried += record(self._store, receipts, tokens)
        return bool(due)

    def flush(self) -> None:
        """Remove the rows that the transport took. Blocks."""
        rows = list(self.carried)
        if rows:
            with self._store.unit("") as unit:
                unit.remove(rows)
                unit.commit()
            for _ in rows:
                self.carried.popleft()
        self._removed = self._clock.monotonic()


def record(store: Store, receipts: Sequence[Receipt], tokens: Mapping[str, int]) -> list[tuple[str, int]]:
    """Record the receipts of a transport. Returns the rows that it took, as (row, token), which can be removed. Blocks.

    A row that it refused is parked with the reason, for longer the more often it was leased. A row that it did not
    confirm in time is released, and sent again as soon as possible; after the third lease it is parked too.
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
