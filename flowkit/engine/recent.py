"""What a worker handled in its last seconds, for who compares versions."""

from collections import deque
from collections.abc import Sequence

from flowkit.engine.item import Item
from flowkit.ports import Clock, Dead, Figures, Retried

WINDOW_SECONDS = 5.0
MOST = 5_000
"""So many of the last messages are enough."""


class Recent:
    """Noted by lanes, each on its thread; read by the worker's upkeep."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, float, bool]] = deque(maxlen=MOST)
        """When, seconds since it was staged, and whether it failed."""

    def note(self, items: Sequence[Item]) -> None:
        """These are at the end of their batch."""
        now, at = self._clock.now(), self._clock.monotonic()
        self._ended.extend(
            (at, now - item.delivery.staged if item.delivery.staged else 0.0, isinstance(item.outcome, Retried | Dead))
            for item in items
            if item.handled and item.outcome is not None
        )

    def figures(self) -> Figures:
        """Of the last seconds."""
        since = self._clock.monotonic() - WINDOW_SECONDS
        lately = [one for one in list(self._ended) if one[0] >= since]
        if not lately:
            return Figures()
        took = sorted(seconds for _, seconds, _ in lately)
        return Figures(len(lately), sum(failed for *_, failed in lately), took[int(len(took) * 0.99)])
