"""The simulated broker: queues with confirms, prefetch and redelivery, and the faults of brokers and networks."""

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from flowkit.errors import BrokerUnavailable
from flowkit.message import MAX_BODY
from flowkit.ports import Copy, Delivery, Receipt, Shared
from tests.simulation.world import Process, Task, World

LEASE_SECONDS = 4.0
CONFIRM_SECONDS = 2.0
"""How long a sender waits for a confirm that does not come."""
RECONNECT_SECONDS = 1.0
AGAIN_SECONDS = 2.0
NOTICE_SECONDS = 1.5
"""A client that is frozen for longer is taken for dead: heartbeats."""
SENDS = ("kill", "freeze", "disconnect", "nack", "unconfirmed", "alarm")
RECEIVES = ("kill", "freeze", "disconnect", "delete")


class Queued(NamedTuple):
    """A message at the broker."""

    copy: Copy
    staged: float
    deliveries: int = 0


class Broker:
    """What all connections share. It keeps what it confirmed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queues: dict[str, deque[Queued]] = {}
        self.links: list[Link] = []
        self.alarmed = 0.0
        """It takes no messages until then."""
        self.deleted: dict[str, float] = {}
        """Flow -> when its queue was. Its consumers make it again soon."""
        self.published: Counter[str] = Counter()
        """How often it took each row."""
        self.redelivered = 0
        self.returned = 0
        self._random = random.Random(world.seed ^ 0xB80)

    def take(self, copy: Copy) -> bool:
        """Put a message in its queue; False where there is none."""
        queue = self.queues.get(copy.flow)
        if queue is None:
            self.returned += 1
            return False
        self.published[copy.row] += 1
        queue.append(Queued(copy, copy.staged or self.world.now()))
        self.push(copy.flow)
        return True

    def give_back(self, flow: str, queued: Sequence[Queued]) -> None:
        """Unacknowledged messages return, in no order that anybody may rely on."""
        back = list(queued)
        self._random.shuffle(back)
        self.redelivered += len(back)
        self.queues.setdefault(flow, deque()).extendleft(back)

    def push(self, flow: str) -> None:
        """Send what waits to consumers that may have more."""
        queue = self.queues.get(flow)
        consumers = [one for link in self.links if link.up for one in link.consumers if one.flow == flow and one.open]
        while queue:
            free = [one for one in consumers if one.free > 0]
            if not free:
                return
            self._random.choice(free).arrive(queue.popleft())

    def delete(self) -> bool:
        """Delete a queue, one in which nothing would be lost. Whether there is one."""
        empty = [flow for flow in sorted(self.queues) if not self.depth(flow)]
        if empty:
            flow = self._random.choice(empty)
            del self.queues[flow]
            self.deleted[flow] = self.world.time
        return bool(empty)

    def depth(self, flow: str) -> int:
        unsettled = sum(len(one.unsettled) for link in self.links for one in link.consumers if one.flow == flow)
        return len(self.queues.get(flow, ())) + unsettled


class Link:
    """Implements ports.Transport: the connection of one process to the broker."""

    lease = LEASE_SECONDS
    hops = True
    limit = MAX_BODY

    def __init__(self, broker: Broker, process: Process) -> None:
        self.broker = broker
        self.world = broker.world
        self.consumers: list[Consumer] = []
        self.up = True
        self._cuts = 0
        """How often it lost the connection."""
        self._back = 0.0
        self._arrived = False
        self._waiters: list[Task] = []
        broker.links.append(self)
        process.onto_death.append(self._died)
        process.onto_freeze.append(self._frozen)

    @property
    def ready(self) -> bool:
        self._reconnect()
        return self.up and self.broker.alarmed <= self.world.time

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        self.world.point("declare", ("kill", "freeze"))
        for flow in flows:
            self.broker.queues.setdefault(flow, deque())

    @property
    def hindered(self) -> dict[str, str]:
        return {}

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> list[str]:
        return []

    def doubts(self, deadlines: Mapping[str, float]) -> list[str]:
        return []

    def others(self, worker: str, is_known: Callable[[], bool]) -> dict[str, str]:
        return {}

    def consumer(self, flow: str, worker: str, limit: int) -> "Consumer":
        consumer = Consumer(self, flow, max(2, limit))
        self.consumers.append(consumer)
        self.broker.push(flow)
        return consumer

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        broker, world = self.broker, self.world
        fault = world.point("send", SENDS)
        if fault == "alarm":
            world.hit()
            broker.alarmed = world.time + 3 * world.random.random()
        if not self.ready or not copies:
            return [Receipt(copy, False) for copy in copies]
        if fault in ("disconnect", "nack", "unconfirmed"):
            world.hit()
        if fault == "disconnect":
            # Some arrived, of which some were confirmed; nobody knows what became of the others.
            arrived = world.random.randint(0, len(copies))
            known = world.random.randint(0, arrived)
            receipts = [self._publish(copy) for copy in copies[:arrived]]
            self.cut()
            return receipts[:known] + [Receipt(copy, False) for copy in copies[known:]]
        refused = world.random.randrange(len(copies)) if fault == "nack" else None
        receipts = [
            Receipt(copy, False, "nacked") if number == refused else self._publish(copy)
            for number, copy in enumerate(copies)
        ]
        cuts = self._cuts
        world.point("refusal" if any(one.reason for one in receipts) else "confirm", ("kill", "freeze"))
        if fault == "unconfirmed":
            world.sleep(CONFIRM_SECONDS)
        if fault == "unconfirmed" or self._cuts > cuts:
            return [one if one.reason else Receipt(one.copy, False) for one in receipts]
        return receipts

    def _publish(self, copy: Copy) -> Receipt:
        taken = self.broker.take(copy)
        return Receipt(copy, taken, "" if taken else f"no queue for flow {copy.flow}")

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        self.meet("wait")
        self._reconnect()
        if not self.up:
            raise BrokerUnavailable("the connection was lost")
        if not self._arrived:
            self.world.wait(self._waiters, seconds)
        self._arrived = False
        return {one.flow for one in self.consumers if one.stocked} & set(flows)

    def meet(self, where: str) -> None:
        """A point at which a consumer's connection may break, or a queue go away."""
        match self.world.point(where, RECEIVES):
            case "disconnect" if self.up:
                self.world.hit()
                self.cut()
            case "delete" if self.broker.delete():
                self.world.hit()

    def depths(self, flows: Collection[str]) -> dict[str, int]:
        return {flow: self.broker.depth(flow) for flow in flows}

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        raise AssertionError(f"nobody renames or removes a flow in a run, and this is for {flow}")

    def close(self) -> None:
        if self in self.broker.links:
            self.cut()
            self.broker.links.remove(self)

    def cut(self) -> None:
        """Lose the connection: what it had not acknowledged goes to others, and what it says of that is stale."""
        self.up = False
        self._cuts += 1
        self._back = self.world.time + RECONNECT_SECONDS * self.world.random.random()
        for consumer in self.consumers:
            consumer.lost()
        for flow in sorted({consumer.flow for consumer in self.consumers}):
            self.broker.push(flow)

    def arrived(self) -> None:
        self._arrived = True
        self.world.wake_some(self._waiters)

    def _reconnect(self) -> None:
        if not self.up and self.world.time >= self._back:
            self.up = True
            for consumer in self.consumers:
                self._consume(consumer)
        for consumer in self.consumers:
            if self.up and self.world.time - self.broker.deleted.get(consumer.flow, self.world.time) > AGAIN_SECONDS:
                self._consume(consumer)

    def _consume(self, consumer: "Consumer") -> None:
        if consumer.open:
            self.broker.queues.setdefault(consumer.flow, deque())
            self.broker.deleted.pop(consumer.flow, None)
            self.broker.push(consumer.flow)

    def _died(self) -> None:
        if self in self.broker.links:
            self.cut()
            self.broker.links.remove(self)

    def _frozen(self, seconds: float) -> None:
        if seconds > NOTICE_SECONDS and self.up:
            self.cut()


class Consumer:
    """Implements ports.Consumer: the consumer of one lane."""

    def __init__(self, link: Link, flow: str, prefetch: int) -> None:
        self._link = link
        self.flow = flow
        self._prefetch = prefetch
        self._buffer: deque[Delivery] = deque()
        self.unsettled: dict[tuple[int, int], Queued] = {}
        self._epoch = 0
        self._tag = 0
        self.open = True

    @property
    def stocked(self) -> bool:
        return bool(self._buffer)

    @property
    def free(self) -> int:
        return self._prefetch - len(self.unsettled)

    def arrive(self, queued: Queued) -> None:
        """The broker hands a message out."""
        self._tag += 1
        tag = self._epoch, self._tag
        queued = queued._replace(deliveries=queued.deliveries + 1)
        self.unsettled[tag] = queued
        copy = queued.copy
        self._buffer.append(
            Delivery(
                copy.message, copy.flow, copy.generation, copy.attempts, queued.deliveries, queued.staged, None, tag
            )
        )
        self._link.arrived()

    def lost(self) -> None:
        self._epoch += 1
        self._buffer.clear()
        back, self.unsettled = list(self.unsettled.values()), {}
        if back:
            self._link.broker.give_back(self.flow, back)

    def receive(self, limit: int) -> list[Delivery]:
        self._link.meet("receive")
        self._link.ready  # noqa: B018 - reconnects when it is time
        return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        self._link.meet("settle")
        for one in deliveries:
            self.unsettled.pop(one.tag, None)
        self._link.broker.push(self.flow)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._link.meet("give back")
        back = [queued for one in deliveries if (queued := self.unsettled.pop(one.tag, None)) is not None]
        if back:
            self._link.broker.give_back(self.flow, back)
            self._link.broker.push(self.flow)

    def close(self) -> None:
        """Stop receiving: what it was handed and did not settle goes to others."""
        self.open = False
        self.lost()
        self._link.broker.push(self.flow)
