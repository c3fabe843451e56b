"""Questions to the store and the broker that everybody may ask, and that cost as much as there are messages."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

KEEP_SECONDS = 1.0
"""An answer is told to others for so long."""
T = TypeVar("T")


class Question(Generic[T]):
    """Is asked once for all who wait, on a thread and a connection of its own. Lives on the event loop."""

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        """`ask` blocks. `name` is that of its thread."""
        self._ask = ask
        self._thread = ThreadPoolExecutor(1, f"flowkit-{name}")
        self._answer: asyncio.Future[T] | None = None
        self._came = 0.0

    async def answer(self) -> T:
        """The answer, which may be KEEP_SECONDS old. Raises what `ask` raises."""
        loop = asyncio.get_running_loop()
        if self._answer is None or (self._answer.done() and loop.time() - self._came >= KEEP_SECONDS):
            self._answer = loop.run_in_executor(self._thread, self._ask)
            self._answer.add_done_callback(self._note)
        return await asyncio.shield(self._answer)

    def close(self) -> None:
        """Ask no more. Waits for the answer to what was asked. Blocks."""
        self._thread.shutdown(cancel_futures=True)

    def _note(self, answer: asyncio.Future[T]) -> None:
        self._came = answer.get_loop().time()
