"""Transports carry copies of messages from the store to the flows. Each has a folder with `open_transport`."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from flowkit.ports import Clock, Random, Ring, Store, Transport
from flowkit.settings import Settings


class Opening(NamedTuple):
    """All that the opener of a transport gets."""

    url: str
    """The URL of the broker; the database's, where the rows are the queue."""
    setting: str
    """The setting that the URL comes from, for errors."""
    settings: Settings
    store: Store
    identity: Callable[[], str]
    """Reads the id of the store: the names of its queues at a broker have it. Blocks."""
    keys: Callable[[], Ring]
    """Reads the keys that sign messages. Blocks. Raises ConfigError where the store has none."""
    clock: Clock
    random: Random
    """For pauses, which must not keep step with those of other workers."""


class OpenTransport(Protocol):
    """A function that opens a transport. It is found by the scheme of the URL, in the entry points
    `flowkit.transports`."""

    def __call__(self, opening: Opening) -> Transport:
        """The transport, which connects at its first use. Raises ConfigError for a wrong URL."""
