"""Replies: what flows returned for requests, looked for in the store for all that wait at once."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from flowkit.errors import FlowKitError
from flowkit.ports import Asked

FIRST_SECONDS, MOST_SECONDS = 0.005, 0.25
GROWTH = 1.2
"""While nobody else comes, each look is later by so much."""
_log = logging.getLogger("flowkit.http")


class Replies:
    """Lives on the event loop. One look at the store is for all that wait, whichever instance had their requests."""

    def __init__(self, look: Callable[[Collection[Asked]], Mapping[Asked, bytes]]) -> None:
        """`look` finds what is there for these requests; it blocks, and is called on a thread."""
        self._look = look
        self._waiting: dict[Asked, list[asyncio.Future[bytes]]] = {}
        self._came = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, asked: Asked, seconds: float) -> bytes | None:
        """The reply to a request, as JSON; None if it does not come in time."""
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
        """Look until nobody waits: often for who has just come, ever more seldom for who waits long."""
        pause = FIRST_SECONDS
        while self._waiting:
            try:
                found = await asyncio.to_thread(self._look, list(self._waiting))
            except FlowKitError:
                found = {}  # the store is away: whoever waits is told in time that it is accepted
            except Exception:
                found = {}
                _log.exception("replies could not be looked for; this is tried again")
            for asked, value in found.items():
                for reply in self._waiting.pop(asked, []):
                    if not reply.done():
                        reply.set_result(value)
            self._came.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._came.wait()
                await asyncio.sleep(FIRST_SECONDS)  # no flow is quicker
                pause = FIRST_SECONDS
            except TimeoutError:
                pause = min(MOST_SECONDS, pause * GROWTH)
