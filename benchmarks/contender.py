"""What takes part in a measurement."""

from collections.abc import Callable, Sequence
from typing import Protocol

from benchmarks.cpu import Usage
from benchmarks.work import Order, Style

DEADLINE_SECONDS = 900.0
"""A run that takes longer has lost something."""


class Lost(Exception):
    """A run did not do exactly the work it was given. Its numbers count for nothing."""


class Contender(Protocol):
    """One way of doing the work, on a fresh database of its own."""

    name: str

    def send(self, orders: Sequence[Order]) -> None:
        """Fill the queue."""

    def run(self, count: int) -> Usage:
        """Do so many, which are in the queue."""

    def latencies(self, count: int) -> list[float]:
        """Do so many as they come. Returns seconds from when each was meant to be sent until it was committed."""

    def check(self, count: int) -> None:
        """Raise Lost unless so many took effect exactly once."""

    def close(self) -> None:
        """Close every connection."""


Kind = Callable[[str, Style, int | None], Contender]
"""Opens a contender: the URL of an empty database, the style of its handler, the process of the database's server."""


def equal(what: str, found: object, wanted: object) -> None:
    """Raise Lost when they differ."""
    if found != wanted:
        raise Lost(f"{what}: {found}, not {wanted}")
