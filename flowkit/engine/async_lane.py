"""A lane whose handler is `async def`: many of its messages are at work at once, on the event loop of the worker."""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import Any

from flowkit.engine.async_bridge import AsyncBridge, BlockingCall
from flowkit.engine.async_pipeline import AsyncItem, AsyncPipeline, Stale
from flowkit.engine.dead_letter import describe
from flowkit.engine.in_flight import Slot, Slots, State
from flowkit.engine.item import ConnectionDied, Item, handle_of
from flowkit.engine.lane import Lane
from flowkit.engine.triage import SOLO_TRIES
from flowkit.errors import Unavailable
from flowkit.loop import Loop
from flowkit.ports import Consumer, Delivery, Done, Identity, Objects

REST_SECONDS = 1.0
STUBBORN_SECONDS = 15.0
"""A handler that goes on for so long after it was cancelled at its deadline never ends."""


class AsyncLane(Lane):
    """Starts handlers on the event loop, and commits in batches what came of them. One thread at a time may step it.

    It is the BlockingRunner of its handlers: the next step makes the calls that they ask for.
    """

    pipeline: AsyncPipeline

    def __init__(
        self,
        pipeline: AsyncPipeline,
        consumer: Consumer,
        worker: str,
        stops: dict[str, str],
        carried: deque[tuple[str, int]],
        loop: Loop,
        slots: Slots,
        heat: Callable[[Lane], None],
    ) -> None:
        """`heat` is called with this lane, by any thread, when a step would find something."""
        super().__init__(pipeline, consumer, worker, stops, carried)
        self._loop = loop
        self._slots = slots
        self._slot = pipeline.slot
        """Notes whose function of `work.run` runs: that message's own slot says waiting meanwhile, or what is next."""
        self._heat = heat
        self._begun: dict[AsyncItem, tuple[float, Slot]] = {}
        """Items given to the loop, the oldest first, with the time of that."""
        self._ends: deque[AsyncItem] = deque()
        self._calls: deque[BlockingCall] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = threading.Event()
        self._width = self.flow.reach
        """How many handlers are at work beside each other: fewer while they change what others of them have read."""
        self._stale: Counter[Identity] = Counter()
        """How often a message ran for nothing, because an object had changed since its handler read it."""

    def step(self) -> bool:
        """Run calls, start handlers, commit what came of others. False when there was nothing of it."""
        self._news.clear()
        ran = self._run_calls()
        self._collect()
        if self.stopped or self._ended is not None:
            self._drop()
            return super().step()
        started = not self.pipeline.halted() and self._start()
        return self._commit() or ran or started or self.flush()

    def step_alone(self) -> bool:
        """Run one suspect to its end, while nothing else runs in this process. False when there is none."""
        if self.stopped or self._ended is not None:
            return self.step()
        if not self.suspects or self.running:
            return False
        self._begin_solo(self.suspects[0])
        self._launch(self.pipeline.begin(self.suspects[:1]), State.ALONE)
        del self.suspects[0]
        while self.running:
            self._news.wait(REST_SECONDS)
            self._news.clear()
            self._run_calls()
        if self._ended is not None:
            return self.step()
        self._collect()
        return self._commit()

    def rest(self) -> bool:
        """Wait until a handler ends or wants something, if one is at work."""
        if not self._begun:
            return False
        self._news.wait(REST_SECONDS)
        return True

    def drain(self) -> None:
        """Cancel what still runs, and give back everything that is held. Nobody steps the lane any more."""
        self._loop.run(self._cancel())
        self._ends.clear()
        self._drop()
        self.held += [item.delivery for item in self._begun if item.outcome is None]
        self._begun.clear()
        super().drain()

    @property
    def running(self) -> int:
        return len(self._begun) - len(self._ends)

    @property
    def unfinished(self) -> bool:
        return bool(self._begun or self.pipeline.ended)

    @property
    def expectant(self) -> bool:
        room = self._room > 0 and not self.pipeline.halted()
        return bool(self._news.is_set() or self._ready or (self.held and room)) or (
            bool((self.suspects and not self.running) or self.pipeline.confirmed)
            or (self._ended is not None and not self.stopped)
        )

    @property
    def in_hand(self) -> list[Delivery]:
        ended = list(self.pipeline.ended.values())
        return [*super().in_hand, *(item.delivery for item in (*ended, *list(self._begun)))]

    def late(self, now: float) -> Slot | None:
        oldest = next(iter(list(self._begun.items())), None)
        if oldest is not None and not oldest[0].handled:
            begun, slot = oldest[1]
            if now - begun > self.flow.deadline + STUBBORN_SECONDS:
                return slot
        return super().late(now)

    # ------------------------------------------------------------ the lane's thread

    def _start(self) -> bool:
        """Start what was held, or what is there, as far as there is room."""
        if self._room <= 0:
            return False
        self.held = self.held or self.consumer.receive(self._room)
        room = max(0, self._room)
        batch, self.held = self.held[:room], self.held[room:]
        self.working = batch
        try:
            if batch:
                self._launch(self.pipeline.begin(batch), State.RUNNING)
        except BaseException:
            self.held = [*batch, *self.held]
            raise
        finally:
            self.working = ()
        return bool(batch)

    @property
    def _room(self) -> int:
        """How many more handlers may begin."""
        room = self._width - max(len(self._begun), len(self.pipeline.ended))
        known = [*self.held, *(item.delivery for item in self._begun)]
        return min(room, self.pipeline.together(known) - self.running)

    def _launch(self, items: Sequence[AsyncItem], state: State) -> None:
        """Give items to the loop. What needs no handler is at its end; a suspect waits until it can run alone."""
        begun = []
        for item in items:
            if item.claim is None or item.handled:
                self.pipeline.ended[handle_of(item.delivery)] = item
            elif item.claim.suspect and state is not State.ALONE:
                self.suspects.append(item.delivery)
            else:
                slot = self._slots.take()
                self._begun[item] = (self.pipeline.context.clock.monotonic(), slot)
                begun.append((item, slot))
        self._loop.call(self._attend, begun, state)

    def _run_calls(self) -> bool:
        ran = False
        while self._calls:
            ran = True
            call = self._calls.popleft()
            try:
                result = call.run()
            except BaseException as error:
                self._loop.call(_fail, call.result, error)
            else:
                self._loop.call(_give, call.result, result)
        return ran

    def _collect(self) -> None:
        """Those whose handlers ended wait for their commit; where the database was missed they run again."""
        while self._ends:
            item = self._ends.popleft()
            del self._begun[item]
            if item.outcome is not None:
                self._tell_of_failure(item)
                self._adapt([item], [])
            elif item.bridge is not None and item.bridge.missed is not None:
                self.held.append(item.delivery)
                if isinstance(item.bridge.missed, Stale):
                    self._adapt([item], [item])
            else:
                self.pipeline.ended[handle_of(item.delivery)] = item

    def _keep(self, items: Sequence[Item]) -> None:
        super()._keep(items)
        self._adapt(items, [item for item in items if item.claim is not None and item.outcome is None])

    def _adapt(self, items: Sequence[Item], stale: Sequence[Item]) -> None:
        """Of handlers that read and write the same object one comes through, and the others run again: let so many
        fewer be at work. When all come through, let there be one more."""
        at_work = len(self._begun) + len(items)
        self._width = max(1, min(self._width, at_work) - len(stale)) if stale else min(self.flow.reach, self._width + 1)
        for ended in (item for item in items if self._stale and item.outcome is not None):
            self._stale.pop(ended.delivery.identity, None)
        for identity in (item.delivery.identity for item in stale):
            self._stale[identity] += 1
            if self._stale[identity] % SOLO_TRIES == 0:
                self._log.warning(
                    "flow %s: message %s has run %d times for nothing: each time another one changed an object between "
                    "its get and its commit; shorten that time, or keep less under one key",
                    self.flow.name, identity[2], self._stale[identity],
                )  # fmt: skip

    def _commit(self) -> bool:
        """Commit a batch of what came of handlers. False when there is nothing."""
        ready = self._ready[: self._limit]
        try:
            if ready:
                self._process(ready)
        finally:  # what could not be committed waits among the ended; only what is held runs again
            self.held = [one for one in self.held if handle_of(one) not in self.pipeline.ended]
        return bool(ready)

    @property
    def _ready(self) -> list[Delivery]:
        """What can be committed: all that ended, but for duplicates of what is at work here."""
        ended, begun = self.pipeline.ended, self._begun

        def waits(twin: Item) -> bool:
            return twin.outcome is None and (twin in begun or handle_of(twin.delivery) in ended)

        return [item.delivery for item in ended.values() if item.twin is None or not waits(item.twin)]

    def _tell_of_failure(self, item: Item) -> None:
        if isinstance(item.outcome, Done) and item.error is not None:
            self._log.error(
                "flow %s: message %s: its handler failed after work.run() had committed: the message is applied, and "
                "this failure changes nothing: %s",
                self.flow.name, item.delivery.message.id, describe(item.error),
            )  # fmt: skip

    def _drop(self) -> None:
        """What came of handlers is not committed: their messages are given back, but for the one to be quarantined."""
        culprits = self.pipeline.items if self._ended is not None else ()
        self.held += [item.delivery for item in self.pipeline.ended.values() if item not in culprits]
        self.pipeline.ended.clear()

    # ------------------------------------------------------------ for the calls of its handlers

    def take(self, call: BlockingCall) -> None:
        self._calls.append(call)
        self._tell()

    def withdraw(self, call: BlockingCall) -> bool:
        try:
            self._calls.remove(call)
        except ValueError:
            return False
        return True

    def apply(self, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        if self.stopped or self._ended is not None:
            raise Unavailable(f"flow {self.flow.name} is stopped: message {item.delivery.message.id} is given back")
        self._slot.note(item.delivery.identity, State.RUNNING)
        try:
            return self.pipeline.apply(item, function, given_up)
        except ConnectionDied as error:
            raise self.triage.died(item.delivery, error) from error
        finally:
            self._slot.strike()
            self._ended = self.pipeline.severed

    def read(self, key: str) -> Any:
        with self.pipeline.store.unit(self.flow.name, lane=self.pipeline.lane) as unit, unit.access() as access:
            objects: Any = access.give(Objects)
            return objects.get(key)

    # ------------------------------------------------------------ on the event loop

    def _attend(self, begun: Sequence[tuple[AsyncItem, Slot]], state: State) -> None:
        for item, slot in begun:
            bridge = AsyncBridge(item, self)
            handler = Watched(self.pipeline.attend(item, bridge), item, self.pipeline, slot, state)
            task = asyncio.get_running_loop().create_task(handler)
            self._tasks.add(task)
            task.add_done_callback(partial(self._end, item, slot))

    def _end(self, item: AsyncItem, slot: Slot, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._slots.put_back(slot)
        if not task.cancelled():
            self._ends.append(item)
            self._tell()

    async def _cancel(self) -> None:
        self.pipeline.closing = True
        while self._calls:
            self._calls.popleft().result.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STUBBORN_SECONDS)

    def _tell(self) -> None:
        """A step would find something."""
        if not self._news.is_set():
            self._news.set()
            self._heat(self)


class Watched(Coroutine[Any, Any, None]):
    """A handler's coroutine that notes when it executes: only then can it kill the process, or hold up the loop."""

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


def _give(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
