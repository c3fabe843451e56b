"""The relay: sends committed message rows to the broker when they are due.

Such rows were delayed, are retries, or were left by a worker that died.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence

from flowkit.ports import Clock, Copy, Delivery, Receipt, Store, Transport

BATCH = 100
"""Most message rows of one flow that are leased and sent at once."""
PARK_SECONDS = 30.0
"""Most seconds for which a row is parked after the broker refused it. The row is due earlier if its queue is declared.
The first times are shorter, because a queue without a leader refuses rows too, and soon has a leader again."""
DOUBTFUL = 3
"""Leases after which a row that the broker has not confirmed is parked: the broker cannot keep up, and sending more
would not help."""
REMOVE_SECONDS = 0.5
"""Seconds between two removals of rows that the broker took, while more rows are due. Each removal is a transaction, so
the relay removes many rows at once."""
CLOGGED = 10_000
"""Pending messages from which on the worker receives no more while the broker cannot be reached."""


class Relay:
    """Sends due message rows to a transport with a broker. Only one thread at a time may step it."""

    def __init__(self, store: Store, transport: Transport, clock: Clock, worker: str) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._worker = worker
        self.carried: deque[tuple[str, int]] = deque()
        """(row, token) of the rows that the transport took, to be removed. Any thread may add to it."""
        self._removed = 0.0
        self.told: Collection[str] = ()
        """The flows that were reported to have due rows. If empty, the next step queries the store for all flows."""
        self.clogged = False
        """Whether so many messages wait to be sent that the worker must not receive more."""

    def step(self) -> bool:
        """Send one batch of each flow that has due rows. False if no flow has any, or if the transport is not ready.

        Blocks for the store and the broker. Raises StoreUnavailable.
        """
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
            # The lease is committed before the rows are sent, so that no other relay sends them, too.
            rows = self._store.queue.lease(flow, BATCH, self._worker, self._transport.lease)
            receipts = self._transport.send([_copy(one) for one in rows])
            tokens = {str(one.row): one.deliveries for one in rows}
            self.carried += record(self._store, receipts, tokens)
        return bool(due)

    def flush(self) -> None:
        """Remove the rows that the transport took, in one transaction. Blocks. Raises StoreUnavailable."""
        rows = list(self.carried)
        if rows:
            with self._store.unit("") as unit:
                unit.remove(rows)
                unit.commit()
            for _ in rows:
                self.carried.popleft()
        self._removed = self._clock.monotonic()


def record(store: Store, receipts: Sequence[Receipt], tokens: Mapping[str, int]) -> list[tuple[str, int]]:
    """Act on the receipts of the transport. Returns (row, token) of the confirmed rows, which can be removed.

    `tokens`: the token of each row, which is the number of its leases. A row that the transport refused is parked with
    the reason, for longer with each lease. A row without confirmation and reason timed out or was lost: its lease is
    released, so that any relay can send the row again at once. After DOUBTFUL leases such a row is parked as well.
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
