"""A broker in memory: the reference transport. It behaves like a remote broker, with unacknowledged messages."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from flowkit.errors import ConfigError
from flowkit.message import MAX_BODY, Message
from flowkit.ports import CANDIDATE, Clock, Copy, Delivery, Receipt, Shared

LEASE_SECONDS = 30.0


class MemoryTransport:
    """Implements ports.Transport. Thread-safe. Its messages are lost with the process.

    `disconnect()`, `unbind()`, `drop_confirms` and `duplicate()` simulate failures of networks and brokers.
    """

    lease = LEASE_SECONDS
    hops = True
    limit = MAX_BODY

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.drop_confirms = False
        """Whether confirms are lost: the copy is in the queue, but its sender does not know."""
        self.duplicates = 0
        self.shared: list[Message] = []
        """The messages that were sent to the exchanges of shared channels."""
        self._queues: dict[str, deque[Delivery]] = {}
        self._unacked: dict[int, Delivery] = {}
        self._tags = itertools.count(1)
        self._changed = threading.Condition()
        self._arrived = False
        self._epoch = 0

    @property
    def ready(self) -> bool:
        return True

    @property
    def hindered(self) -> dict[str, str]:
        """Always empty: nothing can hinder a single flow."""
        return {}

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        with self._changed:
            for flow in flows:
                self._queues.setdefault(flow, deque())

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> list[str]:
        """Return no findings: a queue cannot be wrong."""
        return []

    def doubts(self, deadlines: Mapping[str, float]) -> list[str]:
        return []

    def others(self, worker: str, is_known: Callable[[], bool]) -> dict[str, str]:
        return {}

    def consumer(self, flow: str, worker: str, limit: int) -> "MemoryConsumer":
        self.declare([flow])
        return MemoryConsumer(self, flow)

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        receipts = []
        with self._changed:
            for copy in copies:
                if copy.exchange:
                    self.shared.append(copy.message)
                    receipts.append(Receipt(copy, not self.drop_confirms))
                    continue
                queue = self._queues.get(copy.flow)
                if queue is None:
                    receipts.append(Receipt(copy, False, f"no queue for flow {copy.flow}"))
                    continue
                staged = copy.staged or self._clock.now()
                queue.append(Delivery(copy.message, copy.flow, copy.generation, copy.attempts, 0, staged))
                receipts.append(Receipt(copy, not self.drop_confirms))
            self._arrive()
        return receipts

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._arrived, seconds)
            self._arrived = False
            return {flow for flow in flows if self._queues.get(flow)}

    def depths(self, flows: Collection[str]) -> dict[str, int]:
        """Flow -> number of messages that are queued or unacknowledged."""
        with self._changed:
            return {
                flow: sum(len(self._queues.get(address, ())) for address in (flow, flow + CANDIDATE))
                + sum(one.flow.removesuffix(CANDIDATE) == flow for one in self._unacked.values())
                for flow in flows
            }

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        for address in (flow, flow + CANDIDATE):
            if any(one.flow == address for one in self._unacked.values()):
                raise ConfigError(f"flow {flow}: messages of it are in flight")
            if waiting := list(self._queues.get(address, ())):
                keep(waiting)
            self._queues.pop(address, None)

    def close(self) -> None:
        with self._changed:
            self._arrive()

    # ------------------------------------------------------------ simulated failures

    def disconnect(self) -> None:
        """Lose every connection: unacknowledged messages return to their queues; later acknowledgements are stale."""
        with self._changed:
            self._epoch += 1
            for tag in sorted(self._unacked, reverse=True):
                delivery = self._unacked.pop(tag)
                self._queues[delivery.flow].appendleft(delivery)
            self._arrive()

    def duplicate(self, flow: str) -> None:
        """Queue every waiting message of a flow a second time."""
        with self._changed:
            self.duplicates += len(self._queues[flow])
            self._queues[flow].extend(list(self._queues[flow]))

    def unbind(self, flow: str) -> None:
        """Delete the queue of a flow: the broker returns messages that are sent there."""
        with self._changed:
            del self._queues[flow]

    def deliver(self, flow: str, message: Message) -> None:
        """Queue a foreign message: its channel is empty; its id may be empty."""
        with self._changed:
            self._queues[flow].append(Delivery(message, flow, deliveries=0, foreign=True))
            self._arrive()

    def _arrive(self) -> None:
        self._arrived = True
        self._changed.notify_all()

    # ------------------------------------------------------------ for its consumers

    def take(self, flow: str, limit: int) -> list[Delivery]:
        with self._changed:
            taken: list[Delivery] = []
            queue = self._queues.get(flow, deque())
            while queue and len(taken) < limit:
                delivery = queue.popleft()
                tag = next(self._tags)
                delivery = delivery._replace(deliveries=delivery.deliveries + 1, tag=(self._epoch, tag))
                self._unacked[tag] = delivery
                taken.append(delivery)
            return taken

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            for delivery in deliveries:
                epoch, tag = delivery.tag
                if epoch == self._epoch:
                    del self._unacked[tag]

    def reject(self, deliveries: Sequence[Delivery]) -> None:
        with self._changed:
            for delivery in reversed(deliveries):
                epoch, tag = delivery.tag
                if epoch == self._epoch:
                    self._queues[delivery.flow].appendleft(self._unacked.pop(tag))
            self._arrive()


class MemoryConsumer:
    """Implements ports.Consumer on one queue."""

    def __init__(self, transport: MemoryTransport, flow: str) -> None:
        self._transport = transport
        self._flow = flow

    @property
    def stocked(self) -> bool:
        """Always False: queued messages are there for all lanes."""
        return False

    def receive(self, limit: int) -> list[Delivery]:
        return self._transport.take(self._flow, limit)

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        self._transport.acknowledge(deliveries)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._transport.reject(deliveries)

    def close(self) -> None:
        """Do nothing: the lane has released its unacknowledged messages."""
