"""Helpers for the tests of stores and transports: messages, deliveries, and a fresh store for each test."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flowkit.message import Message, new_id
from flowkit.ports import Consumer, Copy, Delivery, Letter, Store, Tally, Transport
from flowkit.store.sql import SqlStore

T = TypeVar("T")
FLOW = "kit.flow"
OTHER = "kit.other"
CHANNEL = "kit.channel"
DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class Features:
    """In what transports may differ."""

    rows: bool
    """The store's message rows are the queue; else copies hop to it after the commit."""


def message(body: bytes = b"{}", **fields: Any) -> Message:
    """A message of the kit."""
    return Message(**{"id": new_id(), "source": "kit", "channel": CHANNEL, "body": body, **fields})


def delivery(one: Message, flow: str = FLOW, generation: int = 0, attempts: int = 0) -> Delivery:
    """A message as a lane would hold it."""
    return Delivery(one, flow, generation, attempts)


def there(found: T | None) -> T:
    """Return the value that a store must find."""
    assert found is not None
    return found


def raises(error: type[Exception], work: Callable[[], object]) -> bool:
    """Whether the store refuses this, by this error."""
    try:
        work()
    except error:
        return True
    return False


class StoreKit:
    """Opens a store for each test."""

    def open(self) -> SqlStore:
        """A fresh store, with its schema."""
        raise NotImplementedError("say how to open the store")

    def setup_method(self) -> None:
        self.store = self.open()
        self.store.subscribers.add({FLOW: CHANNEL, OTHER: CHANNEL})

    def teardown_method(self) -> None:
        self.store.close()

    def claim(self, *deliveries: Delivery) -> list[str]:
        """The ids that could be claimed, in a transaction of their own."""
        with self.store.unit(FLOW) as unit:
            claims = unit.claim(deliveries)
            unit.commit()
        return sorted(identity[2] for identity in claims)

    def stage(self, *copies: Copy) -> None:
        with self.store.unit(FLOW) as unit:
            unit.stage(copies)
            unit.commit()

    def bury(self) -> Delivery:
        one = delivery(message(b'{"a": 1}'))
        with self.store.unit(FLOW) as unit:
            unit.claim([one])
            unit.bury([Letter(one, "failed", "ValueError: no", "stack", 3)])
            unit.count({FLOW: Tally(accepted=1, dead=1)})
            unit.commit()
        return one


class TransportKit:
    """Opens a store and a transport for each test, and sends, receives and settles as a pipeline does."""

    features: Features

    def open(self) -> tuple[Store, Transport]:
        """A fresh store and the transport to test."""
        raise NotImplementedError("say how to open the transport")

    def lose_connection(self, transport: Transport) -> None:
        """Make the transport forget who holds its unsettled messages, as a broken connection does."""
        raise NotImplementedError("say how a connection is lost")

    def setup_method(self) -> None:
        self.store, self.transport = self.open()
        self.store.subscribers.add({FLOW: CHANNEL, OTHER: CHANNEL})
        self.transport.declare([FLOW, OTHER])

    def teardown_method(self) -> None:
        self.transport.close()
        self.store.close()

    def send(self, *messages: Message, flow: str = FLOW, generation: int = 0) -> None:
        """Stage, commit and publish, as a pipeline does."""
        copies = [Copy(new_id(), one, flow, generation) for one in messages]
        with self.store.unit(flow) as unit:
            unit.stage(copies, self.transport.lease)
            unit.commit()
        confirmed = [(one.copy.row, 1) for one in self.transport.send(copies) if one.confirmed]
        assert len(confirmed) == (0 if self.features.rows else len(copies))
        with self.store.unit(flow) as unit:
            unit.remove(confirmed)
            unit.commit()

    def settle(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        """Commit and settle, as a pipeline does."""
        with self.store.unit(FLOW) as unit:
            unit.remove([(one.row, one.deliveries) for one in deliveries if one.row])
            unit.commit()
        consumer.settle(deliveries)

    def consumer(self, flow: str = FLOW) -> Consumer:
        """A consumer of its own, as of another lane."""
        return self.transport.consumer(flow, new_id(), 100)

    def receive(self, consumer: Consumer, count: int) -> list[Delivery]:
        """Receive `count` deliveries, before a deadline: a broker needs a moment."""
        got: list[Delivery] = []
        end = time.monotonic() + DEADLINE_SECONDS
        while len(got) < count:
            assert time.monotonic() < end, f"{len(got)} of {count} messages came"
            got += consumer.receive(count - len(got)) or self.pause()
        return got

    def pause(self) -> list[Delivery]:
        """Let a moment pass."""
        time.sleep(0.005)
        return []

    def only(self, consumer: Consumer, flow: str = FLOW) -> None:
        """Nothing is there for this consumer: of a message sent now and what was there, it gets that message only."""
        marker = message(b"marker")
        self.send(marker, flow=flow)
        (got,) = self.receive(consumer, 1)
        assert got.message == marker
        assert consumer.receive(10) == []
        self.settle(consumer, [got])

    def fail(self, why: str) -> None:
        raise AssertionError(why)
