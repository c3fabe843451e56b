"""The path of messages with `async def` handlers: begin → attend, many at once → claim → stage → commit → settle →
publish."""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowkit.engine.async_bridge import AsyncBridge
from flowkit.engine.item import ConnectionDied, Exhausted, Item, Refused, Superseded, attempted, checked, handle_of
from flowkit.engine.pipeline import CLOSED, Pipeline
from flowkit.errors import FlowKitError, StoreConflict, StoreUnavailable, TransactionEnded
from flowkit.fork import end_child
from flowkit.model.outbox import Outbox
from flowkit.ports import Copy, Delivery, Unit
from flowkit.publisher import handling

CONFLICT_TRIES = 20
CONFLICT_SECONDS = 0.005


class DeadlinePassed(FlowKitError):
    """An `async def` handler was cancelled at its deadline."""


class Stale(StoreConflict):
    """An object has changed since the handler read it. The handler runs again, with the new value."""


@dataclass(eq=False, slots=True)
class AsyncItem(Item):
    """One delivery whose handler is `async def`."""

    bridge: AsyncBridge | None = None
    """The bridge that its handler works with, from the time that it is called."""


@dataclass(eq=False)
class AsyncPipeline(Pipeline):
    """Runs messages of one flow whose handler is `async def`.

    `attend` runs on the event loop. All else runs on a lane's thread, and blocks. No transaction is open while handlers
    run; the messages that they send and the objects that they keep wait in memory.
    """

    ended: dict[Hashable, AsyncItem] = field(default_factory=dict)
    """Items whose handlers ended, by handle. They wait for their commit."""
    closing: bool = False
    """Whether handlers are cancelled because the worker stops."""
    severed: TransactionEnded | None = None
    """The error of a function that ended its transaction by the driver."""

    def begin(self, deliveries: Sequence[Delivery]) -> list[AsyncItem]:
        """Decode messages, and find those that may run. Blocks."""
        items = [AsyncItem(delivery) for delivery in deliveries]
        with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
            self.decode(items)
            self.look(unit, items)
            if not self.routes.keys() >= set(self._channels):
                self.routes = unit.subscribers(self._channels)
        for item in items:
            if item.claim is not None and item.claim.attempts >= self.flow.retry.attempts:
                item.error, item.handled = Exhausted(item.claim.attempts, self.flow.retry.attempts), True
        return items

    async def attend(self, item: AsyncItem, bridge: AsyncBridge) -> None:
        """Call the handler for one message. Failures are noted in the item, not raised. A cancellation because the
        worker stops is raised."""
        item.bridge = bridge
        item.outbox = Outbox(self.flow, self.context, item.delivery.message, self.routes)
        handling.set(self.flow.name)
        bound = bridge.bound = asyncio.timeout(self.flow.deadline)
        try:
            async with bound:
                running = self.call(item.body, attempted(item.delivery, item.claim), item.outbox, bridge)
                assert running is not None
                await running
        except asyncio.CancelledError as error:
            if self.closing:
                raise
            item.error = error
        except Superseded:
            item.claim = None
        except BaseException as error:
            if bound.expired() and isinstance(error, TimeoutError):
                error = DeadlinePassed(
                    f"its handler ran past its deadline of {self.flow.deadline:g}s and was cancelled; raise deadline=, "
                    "or bound what it waits for"
                )
            item.error = checked(error)
        finally:
            end_child(self.process, self.flow.name)
            item.body = None  # the body may be large, and many items wait for their commit
            item.outbox.close()
            bridge.close()
        item.handled = True

    def run(
        self,
        deliveries: Sequence[Delivery],
        alone: bool = False,
        careful: bool = False,
        verdict: BaseException | None = None,
    ) -> list[Item]:
        """Commit messages whose handlers ended, in one transaction. Raises as `Pipeline.run` does."""
        items: list[Item] = [self.ended[handle_of(delivery)] for delivery in deliveries]
        self.items = items
        self.early = False
        for item in items:
            item.claimed, item.outcome, item.error = False, None, verdict or item.error
        try:
            with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
                self.claim(unit, items)
                copies = self.commit(unit, items)
        except BaseException:
            for item in items:  # these are no outcomes, nor for the duplicates of these messages
                item.outcome = None
            raise
        for delivery in deliveries:
            del self.ended[handle_of(delivery)]
        self.observe(items)
        self.settle(items)
        self.publish(copies)
        return items

    def stage(self, unit: Unit, items: Sequence[Item]) -> list[Copy]:
        for item in items:
            bridge = item.bridge if isinstance(item, AsyncItem) else None
            done = item.claim is not None and item.handled and item.error is None
            if done and bridge is not None and bridge.holds and not self._write(unit, bridge):
                if self.early:
                    raise Stale(f"message {item.delivery.message.id}: an object has changed since its handler read it")
                item.handled = False  # the message stays in the lane, and runs again
        return super().stage(unit, items)

    def _write(self, unit: Unit, bridge: AsyncBridge) -> bool:
        with unit.access() as access:
            return bridge.write(access)

    def apply(self, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        """Run a function as the whole unit of work of one message, claimed first and committed alone. Returns the
        function's result. Blocks."""
        for again in range(1, CONFLICT_TRIES + 1):
            try:
                return self._apply(item, function, given_up)
            except StoreConflict as conflict:
                if again == CONFLICT_TRIES or isinstance(conflict, Stale):
                    raise
                time.sleep(CONFLICT_SECONDS * again * self.random())

    def _apply(self, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        self.items, self.early = [item], True
        item.claimed = False
        try:
            with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
                self.claim(unit, [item])
                if item.claim is None:
                    raise Superseded
                self.routes = unit.subscribers(self._channels)
                result = self._call(unit, item, function, given_up)
                copies = self._commit(unit, item)
        except ConnectionDied as died:
            if died.shut and self._are_claimed([item]):
                self.severed, item.handled = TransactionEnded(CLOSED), True
                raise self.severed from died
            raise
        self.observe([item])
        self.settle([item])
        self.publish(copies)
        return result

    def _call(self, unit: Unit, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        item.outbox = outbox = Outbox(self.flow, self.context, item.delivery.message, self.routes)
        token = handling.set(self.flow.name)
        unit.settings = self.flow.settings
        try:
            with unit.access() as access:
                try:
                    result = function(access.give(self.store.session), outbox)
                finally:
                    end_child(self.process, self.flow.name)
                if given_up():
                    raise TimeoutError("it was cancelled while it ran")
            return result
        except BaseException as error:
            cause = unit.ended(error) or self._found(unit)
            if isinstance(cause, TransactionEnded):
                self.severed, item.handled = cause, True
            if isinstance(cause, StoreUnavailable) and unit.lost:
                raise ConnectionDied(str(cause), unit.shut) from error
            if cause is None or cause is error:
                raise
            raise cause from error
        finally:
            outbox.close()
            handling.reset(token)

    def _found(self, unit: Unit) -> TransactionEnded | None:
        """Return the error that tells that a failed function had ended its transaction by the driver, if it had."""
        try:
            unit.check()
        except TransactionEnded as ended:
            return ended
        return None

    def _commit(self, unit: Unit, item: Item) -> list[Copy]:
        item.handled = True
        try:
            return self.commit(unit, [item])
        except TransactionEnded as error:
            self.severed = error
            raise
        except Refused as refused:
            assert refused.__cause__ is not None
            item.handled, item.outcome = False, None
            raise refused.__cause__ from None
        except BaseException:
            item.handled, item.outcome = False, None
            raise
