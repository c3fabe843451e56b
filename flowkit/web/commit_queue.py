"""The commit queue: requests that arrive while a commit runs share the next one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from flowkit.model.outbox import Outgoing
from flowkit.publisher import Publisher, Waiting

COMMITS = 2
"""Transactions at once: one is prepared while the other waits for the disk."""
MOST = 500
"""The most requests that share a transaction."""
ROOM = 5_000
"""The most requests that wait: more could not be answered in time."""


class Full(Exception):
    """Too many requests wait for their commit."""


class CommitQueue:
    """Accepts the messages of requests. Those that wait together share a transaction. Lives on the event loop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._waiting: deque[tuple[Sequence[Outgoing], asyncio.Future[None]]] = deque()
        self._committing = 0
        self._threads = ThreadPoolExecutor(COMMITS, "flowkit-commit")

    async def accept(self, messages: Sequence[Outgoing]) -> None:
        """Return when these are committed. Raises Full, or what `Publisher.publish` raises."""
        if len(self._waiting) >= ROOM:
            raise Full
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, accepted))
        self._go_on()
        await accepted

    def close(self) -> None:
        """Wait for the commits that have begun. Blocks."""
        self._threads.shutdown()

    def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._committing < COMMITS:
            together = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            self._committing += 1
            commits: list[Waiting] = [(messages, Future()) for messages, _ in together]
            done = loop.run_in_executor(self._threads, self._publisher.commit, commits)
            done.add_done_callback(partial(self._answer, commits, together))

    def _answer(
        self, commits: Sequence[Waiting], together: Sequence[tuple[object, "asyncio.Future[None]"]], done: object
    ) -> None:
        """Give the requests of a finished commit its result."""
        self._committing -= 1
        for (_, committed), (_, accepted) in zip(commits, together, strict=True):
            if accepted.cancelled():
                continue  # the client went away: its message may be accepted all the same
            error = committed.exception()
            if error is not None:
                accepted.set_exception(error)
            else:
                accepted.set_result(None)
        self._go_on()
