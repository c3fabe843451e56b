"""Keys and headers for tests of signatures without a store."""

from collections.abc import Callable

from flowkit.ports import Key, Ring
from flowkit.services import SystemClock
from flowkit.transports.rabbitmq.signature import Signatures

HEADERS = {"tenant": "blue"}


def ring() -> Ring:
    """One key, always the same."""
    return Ring([Key("test", bytes(32))])


def signatures(read: Callable[[], Ring] = ring) -> Signatures:
    """Signatures whose keys were read."""
    made = Signatures(read, SystemClock())
    made.look()
    return made
