"""Helpers for the tests of stores and transports: messages, deliveries, and a fresh store for each test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowkit.message import Message, new_id
from flowkit.ports import Copy, Delivery, Letter, Tally

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


def raises(error: type[Exception], work: Callable[[], object]) -> bool:
    """Whether the store refuses this, by this error."""
    try:
        work()
    except error:
        return True
    return False


class StoreKit:
    """Opens a store for each test."""

    def open(self) -> Any:
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
