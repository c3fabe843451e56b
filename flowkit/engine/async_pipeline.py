"""The path of messages with `async def` handlers: begin → attend (many at once) → claim → stage → commit → settle →
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
"""Tries of a function that collides with other transactions, before the conflict is raised."""
CONFLICT_SECONDS = 0.005
"""Most seconds to wait after the first conflict. Each further conflict adds as many."""


class DeadlinePassed(FlowKitError):
    """An `async def` handler was cancelled at its deadline."""


class Stale(StoreConflict):
    """An object has changed since the handler read it. The handler's writes are outdated, so the handler runs again."""


@dataclass(eq=False, slots=True)
class AsyncItem(Item):
    """One delivery whose handler is `async def`."""

    bridge: AsyncBridge | None = None
    """The bridge through which the handler works. None until the handler is called."""


@dataclass(eq=False)
class AsyncPipeline(Pipeline):
    """Runs messages of one flow whose handler is `async def`.

    `attend` runs on the event loop. All other methods run on a thread of the lane, and block. No transaction is open
    while handlers run: the messages that they send and the objects that they put wait in memory for the commit.
    """

    ended: dict[Hashable, AsyncItem] = field(default_factory=dict)
    """By handle: the messages whose handlers have finished, and that wait for their commit."""
    closing: bool = False
    """Whether the worker shuts down and cancels its handlers."""
    severed: TransactionEnded | None = None
    """The error of a function that bypassed FlowKit and ended its transaction by the driver, or None."""

    def begin(self, deliveries: Sequence[Delivery]) -> list[AsyncItem]:
        """Decode messages, and read in the inbox which of them may run. Claims nothing."""
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
        """Call the handler for one message, within its deadline. Failures are noted on the item, not raised.

        Raises CancelledError only if the worker shuts down (`closing`). Any other cancellation is a failure.
        """
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
            item.body = None  # It may be large, and many messages may wait for their commit.
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
        """Commit the outcomes of messages whose handlers have finished, in one transaction.

        `alone` and `careful` have no effect. `verdict` replaces the error of each message. Raises what `Pipeline.run`
        raises.
        """
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
            for item in items:  # Nothing was committed. Without an outcome, their duplicates stay in the lane as well.
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
                item.handled = False  # The message stays in the lane, and its handler runs again.
        return super().stage(unit, items)

    def _write(self, unit: Unit, bridge: AsyncBridge) -> bool:
        with unit.access() as access:
            return bridge.write(access)

    def apply(self, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        """Claim a message, run a function in the same transaction, and commit. Returns the result of the function.

        After a conflict the function runs again, up to CONFLICT_TRIES times; Stale is raised at once. `given_up`: tells
        whether the caller has stopped waiting. Nothing is committed then, and TimeoutError is raised. Raises Superseded
        if the message cannot be claimed. The errors of the function and of the store pass.
        """
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
        """The error that says that a failed function ended its transaction by the driver. None if it did not."""
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
