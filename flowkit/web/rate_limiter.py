"""The rate limiter: how many requests each client may send, and when the next one. It has a token bucket for each."""

import time
from ipaddress import ip_address, ip_network
from math import ceil

MOST = 10_000
"""The clients that are remembered. The one that came longest ago is forgotten first, and starts anew."""
CLIENT_BITS = 64
"""Of an IPv6 address: a client that has one has its whole network."""


def client(host: str) -> str:
    """The client at an address."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ip_network((address, CLIENT_BITS), strict=False)) if address.version == 6 else host


class TokenBucket:
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


class RateLimiter:
    """A token bucket for each client. Lives on one thread."""

    def __init__(self, rate: float) -> None:
        """`rate`: tokens per second of each."""
        self._rate = rate
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, client: str) -> int:
        """Take a token of this client's. 0, or in how many seconds there is one again."""
        bucket = self._buckets.pop(client, None) or TokenBucket(self._rate)
        self._buckets[client] = bucket
        if len(self._buckets) > MOST:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take()
