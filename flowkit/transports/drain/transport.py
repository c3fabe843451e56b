"""Draining a broker: message rows are the queue, and lanes also receive the messages left at the broker."""

from collections.abc import Callable, Collection, Mapping, Sequence

from flowkit.errors import BrokerUnavailable
from flowkit.ports import Consumer, Copy, Delivery, Receipt, Shared, Transport

LOOK_SECONDS = 0.1
"""Seconds between two looks at the broker, which does not end a wait for the database."""


class DrainingTransport:
    """Implements ports.Transport: sends as message rows, and receives from the rows and a broker. Thread-safe."""

    lease = 0.0
    hops = False

    def __init__(self, rows: Transport, broker: Transport) -> None:
        self._rows = rows
        self._broker = broker
        self.limit = rows.limit

    @property
    def ready(self) -> bool:
        return self._rows.ready

    @property
    def hindered(self) -> Mapping[str, str]:
        """The hindrances of the rows only: a flow that cannot receive from the broker logs that, and continues."""
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

    def consumer(self, flow: str, worker: str, limit: int) -> "DrainingConsumer":
        return DrainingConsumer(self._rows.consumer(flow, worker, limit), self._broker.consumer(flow, worker, limit))

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        return self._rows.send(copies)

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        told = self._rows.wait(min(seconds, LOOK_SECONDS), flows)
        try:
            return told | self._broker.wait(0.0, flows)
        except BrokerUnavailable:  # the broker's transport logs this itself; the rows do not need it
            return told

    def depths(self, flows: Collection[str]) -> dict[str, int]:
        rows, broker = self._rows.depths(flows), self._broker.depths(flows)
        return {flow: rows[flow] + broker[flow] for flow in flows}

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        self._broker.empty(flow, keep)

    def close(self) -> None:
        self._broker.close()
        self._rows.close()


class DrainingConsumer:
    """Implements ports.Consumer: receives what is left at the broker first, then message rows."""

    def __init__(self, rows: Consumer, broker: Consumer) -> None:
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
