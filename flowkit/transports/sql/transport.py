"""The database as the queue: message rows are claimed where they were committed, so nothing hops."""

from collections.abc import Callable, Collection, Mapping, Sequence

from flowkit.message import MAX_BODY
from flowkit.ports import Copy, Delivery, Receipt, Shared, Store


class SqlTransport:
    """Implements ports.Transport on the store's message rows. Thread-safe."""

    lease = 0.0
    limit = MAX_BODY

    def __init__(self, store: Store, hold: float) -> None:
        """`hold`: seconds for which a received row belongs to its lane, unless it is renewed."""
        self._store = store
        self._hold = hold

    @property
    def ready(self) -> bool:
        return True

    @property
    def hindered(self) -> dict[str, str]:
        """Nothing hinders a flow alone: all rows are in one table."""
        return {}

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        """Nothing to make: a flow's rows are found by its name."""

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> list[str]:
        """Nothing to look at: a flow's rows are found by its name."""
        return []

    def doubts(self, deadlines: Mapping[str, float]) -> list[str]:
        return []

    def others(self, worker: str, is_known: Callable[[], bool]) -> dict[str, str]:
        return {}

    def source(self, flow: str, worker: str, limit: int) -> "SqlSource":
        return SqlSource(self._store, flow, worker, self._hold)

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """The committed rows are the queue."""
        return []

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        told = self._store.wait(seconds)
        return self._store.queue.due(flows) if told is None else told

    def depths(self, flows: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(flows, 0)

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        """Nothing waits outside of the rows."""

    def close(self) -> None:
        """The store is closed by who opened it."""


class SqlSource:
    """Implements ports.Source: leases rows of one flow."""

    def __init__(self, store: Store, flow: str, worker: str, hold: float) -> None:
        self._store = store
        self._flow = flow
        self._worker = worker
        self._hold = hold

    @property
    def stocked(self) -> bool:
        """False: due rows are there for all lanes."""
        return False

    def receive(self, limit: int) -> list[Delivery]:
        return self._store.queue.lease(self._flow, limit, self._worker, self._hold)

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Their rows were removed in the unit of work."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._store.queue.release([(one.row, one.deliveries) for one in deliveries if one.row is not None])

    def close(self) -> None:
        """Nothing is held."""
