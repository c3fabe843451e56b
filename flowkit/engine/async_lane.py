"""A lane whose handler is `async def`: many of its handlers run at the same time, on the event loop of the worker."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from flowkit.engine.async_pipeline import AsyncItem, AsyncPipeline, Stale
from flowkit.engine.blocking_calls import BlockingCalls
from flowkit.engine.concurrency import Concurrency
from flowkit.engine.dead_letter import describe
from flowkit.engine.handler_tasks import STUBBORN_SECONDS, HandlerTasks
from flowkit.engine.in_flight import Slot, Slots, State
from flowkit.engine.item import Item, handle_of
from flowkit.engine.lane import Lane
from flowkit.loop import Loop
from flowkit.ports import Consumer, Delivery, Done

REST_SECONDS = 1.0


class AsyncLane(Lane):
    """Starts handlers on the event loop, and commits their messages in batches. One thread at a time may step it.

    A step also makes the calls that its handlers ask for.
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
        """`heat` is called with this lane, by any thread, when a step would find something to do."""
        super().__init__(pipeline, consumer, worker, stops, carried)
        self._slots = slots
        self._heat = heat
        self._begun: dict[AsyncItem, tuple[float, Slot]] = {}
        """Items whose handlers were started -> the time of the start, and the slot. The oldest is first."""
        self._news = threading.Event()
        self._calls = BlockingCalls(
            pipeline, self.triage, loop, lambda: bool(self.stopped) or self._ended is not None, self._tell
        )
        self._tasks = HandlerTasks(pipeline, loop, slots, self._calls, self._tell)
        self._concurrency = Concurrency(self.flow.name, self.flow.reach, self._log)

    def step(self) -> bool:
        """Make the calls of handlers, start handlers, and commit messages whose handlers ended. Returns False if there
        was nothing to do. Blocks."""
        self._news.clear()
        ran = self._run_calls()
        self._collect()
        if self.stopped or self._ended is not None:
            self._drop()
            return super().step()
        started = not self.pipeline.halted() and self._start()
        return self._commit() or ran or started or self.flush()

    def step_alone(self) -> bool:
        """Run one suspect until it has its outcome, while nothing else runs in this process. Returns False if there is
        none. Blocks."""
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
        """Wait until a handler ends or asks for a call. Returns False at once if none runs."""
        if not self._begun:
            return False
        self._news.wait(REST_SECONDS)
        return True

    def drain(self) -> None:
        """Cancel the handlers that run, and give back everything that is held. No thread steps the lane any more."""
        self._tasks.cancel()
        self._tasks.ended.clear()
        self._drop()
        self.held += [item.delivery for item in self._begun if item.outcome is None]
        self._begun.clear()
        super().drain()

    @property
    def running(self) -> int:
        return len(self._begun) - len(self._tasks.ended)

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
    def in_flight(self) -> list[Delivery]:
        ended = list(self.pipeline.ended.values())
        return [*super().in_flight, *(item.delivery for item in (*ended, *list(self._begun)))]

    def late(self, now: float) -> Slot | None:
        oldest = next(iter(list(self._begun.items())), None)
        if oldest is not None and not oldest[0].handled:
            begun, slot = oldest[1]
            if now - begun > self.flow.deadline + STUBBORN_SECONDS:
                return slot
        return super().late(now)

    # ------------------------------------------------------------ the lane's thread

    def _start(self) -> bool:
        """Start handlers for the messages that are held, or else for those that are there, as far as there is room."""
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
        """The number of handlers that may begin now."""
        room = self._concurrency.limit - max(len(self._begun), len(self.pipeline.ended))
        known = [*self.held, *(item.delivery for item in self._begun)]
        return min(room, self.pipeline.together(known) - self.running)

    def _launch(self, items: Sequence[AsyncItem], state: State) -> None:
        """Start the handlers of items. An item that needs no handler waits for its commit, and a suspect until it can
        run alone."""
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
        self._tasks.start(begun, state)

    def _run_calls(self) -> bool:
        """Make the calls that handlers asked for. Returns False if there were none."""
        ran = self._calls.run()
        self._ended = self._ended or self.pipeline.severed
        return ran

    def _collect(self) -> None:
        """Take the items whose handlers ended. They wait for their commit, or run again if the database could not be
        reached."""
        while self._tasks.ended:
            item = self._tasks.ended.popleft()
            del self._begun[item]
            if item.outcome is not None:
                warn_of_late_failure(self._log, self.flow.name, item)
                self._concurrency.adapt(len(self._begun), [item], [])
            elif item.bridge is not None and item.bridge.missed is not None:
                self.held.append(item.delivery)
                if isinstance(item.bridge.missed, Stale):
                    self._concurrency.adapt(len(self._begun), [item], [item])
            else:
                self.pipeline.ended[handle_of(item.delivery)] = item

    def _keep(self, items: Sequence[Item]) -> None:
        super()._keep(items)
        stale = [item for item in items if item.claim is not None and item.outcome is None]
        self._concurrency.adapt(len(self._begun), items, stale)

    def _commit(self) -> bool:
        """Commit a batch of items whose handlers ended. Returns False if there is none."""
        ready = self._ready[: self._limit]
        try:
            if ready:
                self._process(ready)
        finally:  # items that could not be committed stay among the ended; only messages that are held run again
            self.held = [one for one in self.held if handle_of(one) not in self.pipeline.ended]
        return bool(ready)

    @property
    def _ready(self) -> list[Delivery]:
        """The messages that can be committed: all whose handlers ended, except duplicates of messages that run here."""
        ended, begun = self.pipeline.ended, self._begun

        def waits(twin: Item) -> bool:
            return twin.outcome is None and (twin in begun or handle_of(twin.delivery) in ended)

        return [item.delivery for item in ended.values() if item.twin is None or not waits(item.twin)]

    def _drop(self) -> None:
        """Give back the messages whose handlers ended, without a commit, except the message to be quarantined."""
        culprits = self.pipeline.items if self._ended is not None else ()
        self.held += [item.delivery for item in self.pipeline.ended.values() if item not in culprits]
        self.pipeline.ended.clear()

    def _tell(self) -> None:
        """Tell the worker that a step would find something to do. Any thread may call it."""
        if not self._news.is_set():
            self._news.set()
            self._heat(self)


def warn_of_late_failure(log: logging.Logger, flow: str, item: Item) -> None:
    """Log a handler's failure that changes nothing, because `work.run` had committed before."""
    if isinstance(item.outcome, Done) and item.error is not None:
        log.error(
            "flow %s: message %s: its handler failed after work.run() had committed: the message is applied, and "
            "this failure changes nothing: %s",
            flow, item.delivery.message.id, describe(item.error),
        )  # fmt: skip
