"""Leaving a broker: the database is the queue, and what is left at the broker is brought to its end."""

from collections.abc import Callable, Collection, Mapping, Sequence

from flowkit.errors import BrokerUnavailable
from flowkit.ports import Copy, Delivery, Receipt, Shared, Source, Transport

LOOK_SECONDS = 0.1
"""How long news from the broker may wait: what waits for the database does not hear of it."""


class DrainingTransport:
    """Implements ports.Transport: sends through one transport, the rows, and receives from two. Thread-safe."""

    lease = 0.0

    def __init__(self, rows: Transport, broker: Transport) -> None:
        self._rows = rows
        self._broker = broker
        self.limit = rows.limit

    @property
    def ready(self) -> bool:
        return self._rows.ready

    @property
    def hindered(self) -> Mapping[str, str]:
        """Those of the rows: a flow that cannot have what is left at the broker says so in the log, and goes on."""
        return self._rows.hindered

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        self._rows.declare(flows, shared)
        self._broker.declare(flows, shared)

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> Sequence[str]:
        return [*self._rows.audit(flows, shared), *self._broker.audit(flows, shared)]

    def doubts(self, deadlines: Mapping[str, float]) -> Sequence[str]:
        return self._broker.doubts(deadlines)

    def others(self, worker: str, is_known: Callable[[], bool]) -> Mapping[str, str]:
        return self._broker.others(worker, is_known)

    def source(self, flow: str, worker: str, limit: int) -> "DrainingSource":
        return DrainingSource(self._rows.source(flow, worker, limit), self._broker.source(flow, worker, limit))

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        return self._rows.send(copies)

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        told = self._rows.wait(min(seconds, LOOK_SECONDS), flows)
        try:
            return told | self._broker.wait(0.0, flows)
        except BrokerUnavailable:  # it says so itself, and is not needed for the rows
            return told

    def depths(self, flows: Collection[str]) -> dict[str, int]:
        rows, broker = self._rows.depths(flows), self._broker.depths(flows)
        return {flow: rows[flow] + broker[flow] for flow in flows}

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        self._broker.empty(flow, keep)

    def close(self) -> None:
        self._broker.close()
        self._rows.close()


class DrainingSource:
    """Implements ports.Source: first what is left at the broker, then rows."""

    def __init__(self, rows: Source, broker: Source) -> None:
        self._rows = rows
        self._broker = broker

    @property
    def stocked(self) -> bool:
        return self._broker.stocked

    def receive(self, limit: int) -> list[Delivery]:
        left = self._broker.receive(limit)
        return left if len(left) == limit else left + self._rows.receive(limit - len(left))

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        self._broker.settle([one for one in deliveries if one.row is None])
        self._rows.settle([one for one in deliveries if one.row is not None])

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._broker.release([one for one in deliveries if one.row is None])
        self._rows.release([one for one in deliveries if one.row is not None])

    def close(self) -> None:
        self._broker.close()
        self._rows.close()
