"""Replies: the values that flows returned for requests. One query of the store serves all waiting requests."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from flowkit.errors import FlowKitError
from flowkit.ports import Asked

FIRST_SECONDS, MOST_SECONDS = 0.005, 0.25
GROWTH = 1.2
"""Factor by which the pause between two looks grows while no new request waits."""
_log = logging.getLogger("flowkit.http")


class Replies:
    """Waits for replies to requests that any instance accepted. One look serves all. Lives on the event loop."""

    def __init__(self, look: Callable[[Collection[Asked]], Mapping[Asked, bytes]]) -> None:
        """`look` returns the replies that the store has for these requests. It blocks, and is called on a thread."""
        self._look = look
        self._waiting: dict[Asked, list[asyncio.Future[bytes]]] = {}
        self._came = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, asked: Asked, seconds: float) -> bytes | None:
        """The reply to a request, as JSON; None if there is none within `seconds`."""
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asked, []).append(reply)
        self._came.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._go())
        try:
            async with asyncio.timeout(seconds):
                return await reply
        except TimeoutError:
            return None
        finally:
            left = [one for one in self._waiting.pop(asked, []) if one is not reply]
            if left:
                self._waiting[asked] = left

    async def _go(self) -> None:
        """Look until no request waits. The pause grows, and is short again when a new request waits."""
        pause = FIRST_SECONDS
        while self._waiting:
            try:
                found = await asyncio.to_thread(self._look, list(self._waiting))
            except FlowKitError:
                found = {}  # the database cannot be reached: the requests are answered 202 when they time out
            except Exception:
                found = {}
                _log.exception("replies could not be read; this is tried again")
            for asked, value in found.items():
                for reply in self._waiting.pop(asked, []):
                    if not reply.done():
                        reply.set_result(value)
            self._came.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._came.wait()
                await asyncio.sleep(FIRST_SECONDS)  # no flow is faster
                pause = FIRST_SECONDS
            except TimeoutError:
                pause = min(MOST_SECONDS, pause * GROWTH)
