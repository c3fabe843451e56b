"""Time, ids and randomness, passed in so that tests can choose them."""

from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time, passed in so that tests can turn it."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds from a fixed point, never backwards: for time boxes and deadlines."""


Ids = Callable[[], str]
"""Makes message and row ids: unique, and sortable by time."""
Random = Callable[[], float]
"""Uniform in [0, 1)."""
