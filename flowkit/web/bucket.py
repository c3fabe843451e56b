"""A bucket of tokens: how many requests may come, and when the next one."""

import time
from math import ceil


class Bucket:
    """Holds the tokens of one second; a request takes one. Lives on one thread."""

    def __init__(self, rate: float) -> None:
        """`rate`: tokens per second."""
        self._rate = rate
        self._most = max(1.0, rate)
        self._left = self._most
        self._since = time.monotonic()

    def take(self) -> int:
        """Take a token. 0, or in how many seconds there is one again."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return ceil((1 - self._left) / self._rate)
        self._left -= 1
        return 0
