"""An open-loop load of HTTP requests: each is due at a fixed time, whatever became of those before.

What a request took counts from when it was due, so that a service that stalls is charged with all that it kept waiting
(coordinated omission; Gil Tene, "How NOT to Measure Latency", 2015).
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
"""So many requests are under way at most."""
TIMEOUT_SECONDS = 10.0
TRIES = 2
"""A request that failed is sent once more, under the same Idempotency-Key."""
SERVER_ERROR = 500


class Request(NamedTuple):
    """What is sent, with `{n}` for the number of the request in path and content."""

    method: str
    path: str
    content: str = ""


class Answer(NamedTuple):
    """What became of one request."""

    due: float
    """Seconds after the load began."""
    took: float
    """Seconds from then to the last answer."""
    status: int
    """Of that answer; 0: there was none."""
    tries: int
    id: str
    """Its Idempotency-Key, which is the id of its message."""

    @property
    def good(self) -> bool:
        return http.HTTPStatus.OK <= self.status < http.HTTPStatus.MULTIPLE_CHOICES

    @property
    def refused(self) -> bool:
        """Whether the request itself is wrong: at another time, or elsewhere, it would fare no better."""
        return self.status != http.HTTPStatus.TOO_MANY_REQUESTS and (
            http.HTTPStatus.MULTIPLE_CHOICES <= self.status < SERVER_ERROR
        )


class Load:
    """Sends requests at a rate until it is stopped. Its threads block; `answers` may be read at any time."""

    def __init__(self, host: str, port: int, request: Request, rate: float, clients: int = CLIENTS) -> None:
        self._host, self._port = host, port
        self._request = request
        self._rate = rate
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self.answers: list[Answer] = []
        self.began = time.monotonic()
        self.epoch = time.time()
        """When the load began, in seconds since the epoch."""
        self._threads = [threading.Thread(target=self._send, name="flowkit-load", daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.began

    def stop(self) -> Sequence[Answer]:
        """Send no more. All answers, in the order in which their requests were due. Blocks until they came."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return sorted(self.answers)

    def _send(self) -> None:
        """The life of one client: the next request, on a connection that it keeps."""
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
    """Those of the requests that were due in this time."""
    return [one for one in answers if begin <= one.due < end]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] if ordered else float("nan")
