"""The tasks that run `async def` handlers on the event loop, and the slots that say which of them executes."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import Any

from flowkit.engine.async_bridge import AsyncBridge
from flowkit.engine.async_pipeline import AsyncItem, AsyncPipeline
from flowkit.engine.blocking_calls import BlockingCalls
from flowkit.engine.in_flight import Slot, Slots, State
from flowkit.engine.item import Item
from flowkit.loop import Loop

STUBBORN_SECONDS = 15.0
"""Seconds that a handler may go on after it was cancelled at its deadline. A longer one counts as endless."""


class HandlerTasks:
    """Runs the handlers of one lane on the event loop. The lane's thread starts and cancels them."""

    def __init__(
        self,
        pipeline: AsyncPipeline,
        loop: Loop,
        slots: Slots,
        calls: BlockingCalls,
        tell: Callable[[], None],
    ) -> None:
        """`calls`: where the handlers ask for calls that block. `tell`: tells the lane that a step would find
        something. `slots`: where the slots of handlers are put back when they end."""
        self.ended: deque[AsyncItem] = deque()
        """Items whose handlers ended, and were not cancelled. The lane takes them."""
        self._pipeline = pipeline
        self._loop = loop
        self._slots = slots
        self._calls = calls
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, begun: Sequence[tuple[AsyncItem, Slot]], state: State) -> None:
        """Start the handlers of these items. Does not block."""
        self._loop.call(self._attend, begun, state)

    def cancel(self) -> None:
        """Cancel the handlers that run. Blocks until they have ended, at most STUBBORN_SECONDS."""
        self._loop.run(self._cancel())

    def _attend(self, begun: Sequence[tuple[AsyncItem, Slot]], state: State) -> None:
        for item, slot in begun:
            bridge = AsyncBridge(item, self._calls)
            handler = Watched(self._pipeline.attend(item, bridge), item, self._pipeline, slot, state)
            task = asyncio.get_running_loop().create_task(handler)
            self._tasks.add(task)
            task.add_done_callback(partial(self._end, item, slot))

    def _end(self, item: AsyncItem, slot: Slot, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._slots.put_back(slot)
        if not task.cancelled():
            self.ended.append(item)
            self._tell()

    async def _cancel(self) -> None:
        self._pipeline.closing = True
        self._calls.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STUBBORN_SECONDS)


class Watched(Coroutine[Any, Any, None]):
    """A handler's coroutine that notes when it executes. Only then can the handler kill the process, or block the
    loop."""

    __slots__ = ("_inner", "_pipeline", "_slot", "_state")

    def __init__(
        self, inner: Coroutine[Any, Any, None], item: Item, pipeline: AsyncPipeline, slot: Slot, state: State
    ) -> None:
        self._inner = inner
        self._pipeline = pipeline
        self._slot = slot
        self._state = state
        slot.note(item.delivery.identity, self._idle)

    @property
    def _idle(self) -> State:
        return State.WAITING if self._state is State.RUNNING else self._state

    def send(self, value: Any) -> Any:
        self._enter()
        try:
            return self._inner.send(value)
        finally:
            self._leave()

    def throw(self, *error: Any) -> Any:
        self._enter()
        try:
            return self._inner.throw(*error)
        finally:
            self._leave()

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return (yield from self._inner.__await__())

    def _enter(self) -> None:
        self._slot.mark(self._state)
        self._pipeline.slot = self._slot
        self._pipeline.since = self._pipeline.context.clock.monotonic()

    def _leave(self) -> None:
        self._pipeline.since = None
        self._slot.mark(self._idle)
