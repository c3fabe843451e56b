"""The contenders of a measurement."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from benchmarks.cpu import Usage
from benchmarks.work import Order, Style

DEADLINE_SECONDS = 900.0
"""A run that takes longer has lost something."""


class Lost(Exception):
    """A run did not do exactly the work it was given. Its numbers count for nothing."""


class Contender(Protocol):
    """One way of doing the work, at a fresh place of its own."""

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


class Place(NamedTuple):
    """Where a run takes place."""

    database: str
    """The URL of an empty database."""
    broker: str = ""
    """The URL of an empty virtual host, where messages travel through a broker."""
    servers: Mapping[str, int] = MappingProxyType({})
    """The processes of the servers, by what they are."""


class Kind(Protocol):
    """Opens a contender, with the style of its handler."""

    name: str

    def __call__(self, place: Place, style: Style) -> Contender: ...


def equal(what: str, found: object, wanted: object) -> None:
    """Raise Lost when they differ."""
    if found != wanted:
        raise Lost(f"{what}: {found}, not {wanted}")
