"""Figures of the messages that a worker handled lately, for the comparison of versions."""

from collections import deque
from collections.abc import Sequence
from math import ceil

from flowkit.engine.item import Item
from flowkit.ports import Clock, Dead, Deferred, Figures, Retried

WINDOW_SECONDS = 60.0
CALM_SECONDS = 2.0
"""Seconds after a change of the rollout that are not counted: the versions wait for each other then."""
MOST = 5_000
"""The number of messages that are remembered, the latest ones."""


class RecentFigures:
    """Lanes note the messages, each on its thread. The worker's maintenance reads the figures."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = 0.0
        self._ended: deque[tuple[float, float, bool]] = deque(maxlen=MOST)
        """For each message: when it ended, the seconds that it was in flight, and whether it failed."""

    def begin(self) -> None:
        """Count anew, because the versions have other shares of the messages now."""
        self._since = self._clock.monotonic() + CALM_SECONDS

    def note(self, items: Sequence[Item], seconds: Sequence[float]) -> None:
        """Note the items of a batch that was committed. `seconds`: how long each was in flight."""
        now = self._clock.monotonic()
        if now >= self._since:
            self._ended.extend(
                (now, took, isinstance(item.outcome, Retried | Deferred | Dead))
                for item, took in zip(items, seconds, strict=True)
                if item.handled and item.outcome is not None
            )

    def figures(self) -> Figures:
        """Return the figures since the last change, of the last minute at most."""
        since = max(self._since, self._clock.monotonic() - WINDOW_SECONDS)
        lately = [one for one in list(self._ended) if one[0] >= since]
        if not lately:
            return Figures()
        took = sorted(seconds for _, seconds, _ in lately)
        return Figures(len(lately), sum(failed for *_, failed in lately), took[ceil(len(took) * 0.99) - 1])
