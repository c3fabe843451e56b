"""Figures of the messages that a worker handled lately, for the comparison of versions."""

from collections import deque
from collections.abc import Sequence
from math import ceil

from flowkit.engine.item import Item
from flowkit.ports import Clock, Dead, Deferred, Figures, Retried

WINDOW_SECONDS = 60.0
CALM_SECONDS = 2.0
"""After each change versions wait for each other: what they handle then says nothing of them."""
MOST = 5_000
"""So many of the last messages are enough."""


class RecentFigures:
    """Noted by lanes, each on its thread; read by the worker's upkeep."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = 0.0
        self._ended: deque[tuple[float, float, bool]] = deque(maxlen=MOST)
        """When, for how many seconds it was in hand, and whether it failed."""

    def begin(self) -> None:
        """Count anew: a version has another share."""
        self._since = self._clock.monotonic() + CALM_SECONDS

    def note(self, items: Sequence[Item], seconds: Sequence[float]) -> None:
        """These are at the end of their batch, and were in hand for so long."""
        now = self._clock.monotonic()
        if now >= self._since:
            self._ended.extend(
                (now, took, isinstance(item.outcome, Retried | Deferred | Dead))
                for item, took in zip(items, seconds, strict=True)
                if item.handled and item.outcome is not None
            )

    def figures(self) -> Figures:
        """Since the last change, at most of the last minute."""
        since = max(self._since, self._clock.monotonic() - WINDOW_SECONDS)
        lately = [one for one in list(self._ended) if one[0] >= since]
        if not lately:
            return Figures()
        took = sorted(seconds for _, seconds, _ in lately)
        return Figures(len(lately), sum(failed for *_, failed in lately), took[ceil(len(took) * 0.99) - 1])
