"""The database as the queue: lanes lease the message rows where they were committed, without a broker."""

from collections.abc import Callable, Collection, Mapping, Sequence

from flowkit.message import MAX_BODY
from flowkit.ports import Copy, Delivery, Receipt, Shared, Store


class SqlTransport:
    """Implements ports.Transport on the store's message rows. Thread-safe."""

    lease = 0.0
    hops = False
    limit = MAX_BODY

    def __init__(self, store: Store, hold: float) -> None:
        """`hold`: seconds of the lease of a received row, unless it is renewed."""
        self._store = store
        self._hold = hold

    @property
    def ready(self) -> bool:
        return True

    @property
    def hindered(self) -> dict[str, str]:
        """Always empty: all rows are in one table, so nothing can hinder a single flow."""
        return {}

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        """Do nothing: the rows of a flow are found by its name."""

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> list[str]:
        """Return no findings: the rows of a flow are found by its name."""
        return []

    def doubts(self, deadlines: Mapping[str, float]) -> list[str]:
        return []

    def others(self, worker: str, is_known: Callable[[], bool]) -> dict[str, str]:
        return {}

    def consumer(self, flow: str, worker: str, limit: int) -> "SqlConsumer":
        return SqlConsumer(self._store, flow, worker, self._hold)

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Do nothing: the committed rows are the queue."""
        return []

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        told = self._store.wait(seconds)
        return self._store.queue.due(flows) if told is None else told

    def depths(self, flows: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(flows, 0)

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        """Do nothing: no message waits outside of the rows."""

    def close(self) -> None:
        """Do nothing: the caller that opened the store closes it."""


class SqlConsumer:
    """Implements ports.Consumer: leases rows of one flow."""

    def __init__(self, store: Store, flow: str, worker: str, hold: float) -> None:
        self._store = store
        self._flow = flow
        self._worker = worker
        self._hold = hold

    @property
    def stocked(self) -> bool:
        """Always False: due rows are there for all lanes."""
        return False

    def receive(self, limit: int) -> list[Delivery]:
        return self._store.queue.lease(self._flow, limit, self._worker, self._hold)

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Do nothing: the unit of work removed the rows."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._store.queue.release([(one.row, one.deliveries) for one in deliveries if one.row is not None])

    def close(self) -> None:
        """Do nothing: a source holds no resources."""
