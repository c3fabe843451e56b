"""The calls that `async def` handlers ask for, and that may block: the thread of their lane makes them."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from flowkit.engine.async_bridge import BlockingCall
from flowkit.engine.async_pipeline import AsyncPipeline
from flowkit.engine.in_flight import State
from flowkit.engine.item import ConnectionDied, Item
from flowkit.engine.triage import Triage
from flowkit.errors import Unavailable
from flowkit.loop import Loop
from flowkit.ports import Objects


class BlockingCalls:
    """Implements BlockingRunner for the handlers of one lane: the event loop takes calls, the thread of the lane makes
    them."""

    def __init__(
        self,
        pipeline: AsyncPipeline,
        triage: Triage,
        loop: Loop,
        is_stopped: Callable[[], bool],
        tell: Callable[[], None],
    ) -> None:
        """`is_stopped`: whether the flow runs no more. `tell`: tells the lane that a step would find something."""
        self._pipeline = pipeline
        self._triage = triage
        self._loop = loop
        self._is_stopped = is_stopped
        self._tell = tell
        self._slot = pipeline.slot
        """Notes the message whose function of `work.run` runs. The message's own slot says meanwhile that it waits."""
        self._asked: deque[BlockingCall] = deque()

    def run(self) -> bool:
        """Make the calls that handlers asked for. Returns False if there were none. Blocks; for the lane's thread."""
        ran = False
        while self._asked:
            ran = True
            call = self._asked.popleft()
            try:
                result = call.run()
            except BaseException as error:
                self._loop.call(_fail, call.result, error)
            else:
                self._loop.call(_give, call.result, result)
        return ran

    def cancel(self) -> None:
        """Cancel the calls that are not begun. For the event loop."""
        while self._asked:
            self._asked.popleft().result.cancel()

    # ------------------------------------------------------------ for the bridges of the handlers

    def take(self, call: BlockingCall) -> None:
        self._asked.append(call)
        self._tell()

    def withdraw(self, call: BlockingCall) -> bool:
        try:
            self._asked.remove(call)
        except ValueError:
            return False
        return True

    def apply(self, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        if self._is_stopped() or self._pipeline.severed is not None:
            flow, message = self._pipeline.flow.name, item.delivery.message.id
            raise Unavailable(f"flow {flow} is stopped: message {message} is given back")
        self._slot.note(item.delivery.identity, State.RUNNING)
        try:
            return self._pipeline.apply(item, function, given_up)
        except ConnectionDied as error:
            raise self._triage.died(item.delivery, error) from error
        finally:
            self._slot.strike()

    def read(self, key: str) -> Any:
        pipeline = self._pipeline
        with pipeline.store.unit(pipeline.flow.name, lane=pipeline.lane) as unit, unit.access() as access:
            objects: Any = access.give(Objects)
            return objects.get(key)


def _give(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
