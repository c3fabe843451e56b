"""An open-loop load of HTTP requests: each is due at a fixed time, regardless of earlier answers.

A response time counts from the due time, so that a stall counts for every request that it delays (coordinated
omission; Gil Tene, "How NOT to Measure Latency", 2015).
"""

import http.client
import itertools
import threading
import time
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from flowkit.message import new_id

CLIENTS = 64
"""Highest number of concurrent requests."""
TIMEOUT_SECONDS = 10.0
TRIES = 2
"""A failed request is sent once more, with the same Idempotency-Key."""
SERVER_ERROR = 500


class Request(NamedTuple):
    """The request to send. `{n}` in path and content stands for the number of the request."""

    method: str
    path: str
    content: str = ""


class Answer(NamedTuple):
    """The result of one request."""

    due: float
    """Seconds after the load began."""
    took: float
    """Seconds from `due` to the last answer."""
    status: int
    """HTTP status of that answer; 0: there was none."""
    tries: int
    id: str
    """Its Idempotency-Key, which is the id of its message."""

    @property
    def good(self) -> bool:
        return http.HTTPStatus.OK <= self.status < http.HTTPStatus.MULTIPLE_CHOICES

    @property
    def refused(self) -> bool:
        """Whether the request itself is wrong, so that a repetition would fail too: 3xx, or 4xx except 429."""
        return self.status != http.HTTPStatus.TOO_MANY_REQUESTS and (
            http.HTTPStatus.MULTIPLE_CHOICES <= self.status < SERVER_ERROR
        )


class Load:
    """Sends `rate` requests a second until it is stopped, on its own threads. Any thread may read `answers`."""

    def __init__(self, host: str, port: int, request: Request, rate: float, clients: int = CLIENTS) -> None:
        self._host, self._port = host, port
        self._request = request
        self._rate = rate
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self.answers: list[Answer] = []
        self.began = time.monotonic()
        self.epoch = time.time()
        """Start of the load, in seconds since the Unix epoch."""
        self._threads = [threading.Thread(target=self._send, name="flowkit-load", daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.began

    def stop(self) -> Sequence[Answer]:
        """Stop sending. Returns all answers, in the order of their due times. Blocks until they have arrived."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return sorted(self.answers)

    def _send(self) -> None:
        """Run one client: send the next due request, on a connection that stays open."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        while True:
            number = next(self._numbers)
            due = number / self._rate
            if self._stopping.wait(max(0.0, due - self.now)) or self._stopping.is_set():
                break
            id, status, tries = new_id(), 0, 0
            while tries < TRIES and not 0 < status < SERVER_ERROR:
                tries += 1
                status = self._ask(connection, number, id)
            self.answers.append(Answer(due, self.now - due, status, tries, id))
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, number: int, id: str) -> int:
        method, path, content = (part.replace("{n}", str(number)) for part in self._request)
        headers = {"content-type": "application/json", "idempotency-key": id}
        try:
            connection.request(method, path, content or None, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return 0
        return answer.status


def during(answers: Sequence[Answer], begin: float, end: float) -> list[Answer]:
    """The answers to requests that were due from `begin` until before `end`, in seconds after the load began."""
    return [one for one in answers if begin <= one.due < end]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed; NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] if ordered else float("nan")
