"""Shared questions to the store and the broker: any client may ask them, and their cost grows with the messages."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

KEEP_SECONDS = 1.0
"""Seconds for which an answer is given to later callers."""
T = TypeVar("T")


class Question(Generic[T]):
    """Asks once for all callers that wait, on its own thread. Lives on the event loop."""

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        """`ask` is called on the thread `flowkit-NAME`, and may block."""
        self._ask = ask
        self._thread = ThreadPoolExecutor(1, f"flowkit-{name}")
        self._answer: asyncio.Future[T] | None = None
        self._came = 0.0

    async def answer(self) -> T:
        """The answer, at most KEEP_SECONDS old. Raises the errors of `ask`."""
        loop = asyncio.get_running_loop()
        if self._answer is None or (self._answer.done() and loop.time() - self._came >= KEEP_SECONDS):
            self._answer = loop.run_in_executor(self._thread, self._ask)
            self._answer.add_done_callback(self._note)
        return await asyncio.shield(self._answer)

    def close(self) -> None:
        """Stop asking. Blocks until the last answer."""
        self._thread.shutdown(cancel_futures=True)

    def _note(self, answer: asyncio.Future[T]) -> None:
        self._came = answer.get_loop().time()
