"""The path of a batch: decode → claim → handle → stage → commit → settle → publish."""

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from flowkit import duration
from flowkit.engine.adoption import adopted, find_reused, is_foreign, received, unread
from flowkit.engine.envelope import check_envelope, legible
from flowkit.engine.failure import outcome_of
from flowkit.engine.in_flight import Slot, State
from flowkit.engine.item import (
    ConnectionDied,
    Exhausted,
    Item,
    Refused,
    Spoiled,
    Superseded,
    attempted,
    checked,
    finished,
)
from flowkit.engine.relay import record
from flowkit.engine.staging import Rows
from flowkit.errors import StoreConflict, StoreUnavailable, TransactionEnded, Undecodable
from flowkit.fork import end_child
from flowkit.model.flow import Flow
from flowkit.model.handler import Call
from flowkit.model.outbox import Context, Outbox
from flowkit.ports import (
    Claim,
    Consumer,
    Copy,
    Delivery,
    Done,
    Duplicate,
    Identity,
    Outcome,
    Random,
    Store,
    Transport,
    Unit,
)
from flowkit.publisher import handling

BOX_SECONDS = 0.25
SERIAL_BOX_SECONDS = 0.05
"""Seconds that the handlers of one batch may run. On a serial store, all others wait for the transaction of the batch.
"""
CLOSED = "a handler committed by the driver and closed the connection"
BORN = 1
"""The token of a row that its lane leases to itself as it writes the row."""
SLOW_SECONDS = 0.001
"""Seconds above which a handler on a serial store gets a short transaction of its own."""
TRUSTED_DELIVERIES = 2
"""The number of deliveries that raise no suspicion: a worker may have ended, or a connection."""
SUSPECT_DELIVERIES = 9
"""The number of deliveries at which a message that may run with no other becomes a suspect, although no supervisor
reported it. Nothing else runs while a suspect runs, so a few lost connections must not lead to this number."""


@dataclass(eq=False)
class Pipeline:
    """Runs batches of one flow, for one lane. Only the lane's thread may call it; each call blocks."""

    flow: Flow
    store: Store
    transport: Transport
    consumer: Consumer
    call: Call
    context: Context
    random: Random
    slot: Slot
    lane: str
    retention: float
    halted: Callable[[], bool] = lambda: False
    """Whether the worker stops or the flow rests. The rest of a batch is then given back."""
    beside: Callable[[], bool] = lambda: False
    """Whether another version of the app runs, which may read messages that this version cannot."""
    apps: Callable[[], Collection[str]] = lambda: ()
    """The apps of the store. No message of another program gets an identity of one of them."""
    observe: Callable[[Sequence[Item]], None] = lambda items: None
    """Called with the items of each batch after its commit."""
    wake: Callable[[set[str]], None] = lambda flows: None
    """Called with the flows that have new messages."""
    since: float | None = None
    """When the running handler began, by the monotonic clock. `Deadlines` reads it."""
    confirmed: list[tuple[str, int]] = field(default_factory=list)
    """Rows that the transport took, as (row, token). The next batch removes them."""
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=31))
    """Seconds that a handler took, the mean of each batch, without the wait for the transaction."""
    spent: float = 0.0
    """Seconds that the handlers of this batch took."""
    process: int = field(default_factory=os.getpid)
    """The process in which handlers run. A process that a handler forks ends when the handler does."""

    items: list[Item] = field(default_factory=list)
    """The batch that runs, or that ran last."""
    early: bool = True
    """Whether the messages of this batch are claimed before they are handled."""
    routes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The subscribers of the channels that this flow sends to, as the transaction of the batch sees them."""

    def __post_init__(self) -> None:
        self.transactional = not self.flow.concurrent and self.flow.takes(self.store.injects)
        self._channels = [channel.name for channel in self.flow.to]

    def run(
        self,
        deliveries: Sequence[Delivery],
        alone: bool = False,
        careful: bool = False,
        verdict: BaseException | None = None,
    ) -> list[Item]:
        """Run one batch in one transaction.

        `alone`: nothing else runs in this process. `careful`: each handler gets a savepoint and a flush. `verdict`: the
        error with which the only message is known to fail; its handler does not run.

        Raises Spoiled, Refused, StoreConflict, StoreUnavailable or TransactionEnded. Nothing is then committed, except
        after a TransactionEnded, which leaves that unknown.
        """
        items = self.items = [Item(delivery) for delivery in deliveries]
        self.early = self.claims_first() or (self.transactional and len(items) > 1)
        try:
            with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
                self.decode(items)
                self.claim(unit, items) if self.early else self.look(unit, items)
                self.handle(unit, items, alone, careful, verdict)
                if not self.early:
                    self.claim(unit, items)
                copies = self.commit(unit, items)
        except ConnectionDied as died:
            if died.shut and self._are_claimed(items):
                raise TransactionEnded(CLOSED) from died
            raise
        self.observe(items)
        self.settle(items)
        self.publish(copies)
        return items

    def quarantine(self, error: TransactionEnded) -> list[Item]:
        """Record the last batch, whose transaction a handler ended by the driver. Nobody knows which effects of its
        handled messages were committed, so these messages become dead letters. The others are given back."""
        items = self.items
        for item in items:
            if item.handled:
                item.error, item.claim = error, item.claim or Claim()
        with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
            self.stage(unit, items)
            unit.commit()
        self.settle(items)
        self.observe(items)
        return items

    # ------------------------------------------------------------ the steps

    def decode(self, items: Sequence[Item]) -> None:
        """Turn the bytes of each message into what its handler takes. A message that cannot be decoded becomes a dead
        letter; if its id may not be its own, the hash of its bytes is its id."""
        now = self.context.clock.now()
        for item in items:
            try:
                if is_foreign(item.delivery):
                    item.delivery = received(
                        item.delivery, self.flow.source.name, self.apps(), self.flow.source_from is not None
                    )
                    item.delivery = adopted(item.delivery, self.flow, self.context)
                delivery = item.delivery
                check_envelope(delivery)
                if delivery.staged and now - delivery.staged > self.retention:
                    raise Undecodable(
                        f"it is older than App(retention={duration.text(self.retention)!r}), so the inbox may have "
                        "forgotten that it was applied; check its effect, then send it again under a new id"
                    )
                item.unread = True
                item.body = self.flow.body.decode(delivery.message.body)
                item.unread = False
            except Undecodable as error:
                item.error = error
            except Exception as error:
                # A validator of the app failed. That counts as a failure of the handler.
                item.error = error
            if item.error is not None:
                item.handled = True
                item.unread = item.unread and self.beside()
                is_unread = item.delivery.foreign and isinstance(item.error, Undecodable) and not item.unread
                item.delivery = unread(item.delivery) if is_unread else legible(item.delivery)

    def look(self, unit: Unit, items: Sequence[Item]) -> None:
        """Find the messages that may run, without a transaction: the handlers of this flow run outside of one.

        A row that is delivered for the first time was never claimed, so the inbox need not be read.
        """
        deliveries = [item.delivery for item in items]
        if all(one.row and one.deliveries == 1 and not one.generation for one in deliveries):
            self._known({one.identity: Claim(one.attempts) for one in deliveries}, items)
        else:
            self._known(unit.look(deliveries), items)

    def claim(self, unit: Unit, items: Sequence[Item]) -> None:
        """Claim in the inbox the messages that are not claimed yet and may run. A message without a claim is a
        duplicate."""
        wanted = [item for item in items if not item.claimed and (item.handled or self.early)]
        if wanted:
            self._known(unit.claim([item.delivery for item in wanted]), wanted)
            for item in wanted:
                item.claimed = item.claim is not None

    def handle(
        self, unit: Unit, items: Sequence[Item], alone: bool, careful: bool, verdict: BaseException | None
    ) -> None:
        """Call the handler for each message, until the time box is over. Notes failures in the items; raises none."""
        clock, began, handled = self.context.clock, self.context.clock.monotonic(), 0
        self.spent = 0.0
        box = SERIAL_BOX_SECONDS if self.store.serial else BOX_SECONDS
        most = self.together([item.delivery for item in items if item.claim is not None])
        if self.early or not self.routes.keys() >= set(self._channels):
            self.routes = unit.subscribers(self._channels)
        unit.settings, unit.alone = self.flow.settings, len(items) == 1
        unit.together = not unit.alone and not careful
        unit.opening = lambda: self._claim_or_leave(unit, items)
        token = handling.set(self.flow.name)
        try:
            for item in items:
                if item.claim is None or item.handled or (item.claim.suspect and not alone):
                    continue
                if handled and (handled >= most or clock.monotonic() - began > box or self.halted()):
                    break
                handled += 1
                item.handled = True
                if verdict is not None:
                    item.error = verdict
                elif item.claim.attempts >= self.flow.retry.attempts:
                    item.error = Exhausted(item.claim.attempts, self.flow.retry.attempts)
                else:
                    self._handle_one(unit, item, State.ALONE if alone else State.RUNNING, careful)
        except Superseded:
            item.claim = None
        finally:
            handling.reset(token)
            if handled:
                self.paces.append((self.spent - unit.waited) / handled)
        self._flush(unit)

    def _handle_one(self, unit: Unit, item: Item, state: State, careful: bool) -> None:
        delivery = item.delivery
        item.outbox = Outbox(self.flow, self.context, delivery.message, self.routes)
        access = unit.access(careful and self.transactional)
        self.slot.note(delivery.identity, state)
        self.since = began = self.context.clock.monotonic()
        try:
            with access:
                try:
                    self.call(item.body, attempted(delivery, item.claim), item.outbox, access)
                finally:
                    end_child(self.process, self.flow.name)
                    self.spent += self.context.clock.monotonic() - began
        except Superseded:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C, not the handler's own
            ended = unit.ended(error)
            if ended is not None:
                raise (ConnectionDied(str(ended), unit.shut) if unit.lost else ended) from error
            item.error = checked(error)
        finally:
            self.since = None
            self.slot.strike()
            item.outbox.close()
            item.body = None  # the body may be large, and the items of the last batch are kept
        if item.error is not None and access.used and not access.undone:
            unit.check()
            raise Spoiled(delivery) from item.error

    def _flush(self, unit: Unit) -> None:
        try:
            unit.flush()
        except Exception as error:
            cause = self.store.classify(error)
            raise (cause if cause is not error else Spoiled()) from error

    def stage(self, unit: Unit, items: Sequence[Item]) -> list[Copy]:
        """Write the rows that record the outcomes of the messages, in the same transaction. Returns the copies to be
        published."""
        rows = Rows(self.context, self.routes)
        for item in items:
            item.outcome = self.decide(item)
            rows.add(item)
        reused = find_reused(unit, items)
        unit.reopen(rows.reopened)
        unit.bury(rows.letters)
        copies = rows.copies
        unit.stage(copies, self.transport.lease)
        unit.remove(self.confirmed + [(one.row, one.deliveries) for one in finished(items) if one.row is not None])
        unit.count(rows.tallies(self.flow.name, items, reused))
        if any(isinstance(item.outcome, Duplicate) for item in items):
            unit.witness()
        return copies

    def commit(self, unit: Unit, items: Sequence[Item]) -> list[Copy]:
        """Stage and commit everything, with one sync to disk for the batch. Returns the copies to be published."""
        try:
            if not self.early:
                # The handlers ran outside of the transaction. Flows that subscribed meanwhile get their copies too.
                self.routes = unit.subscribers(self._channels)
            copies = self.stage(unit, items)
            unit.commit()
            return copies
        except (StoreConflict, StoreUnavailable, TransactionEnded):
            raise
        except Exception as error:
            raise Refused from error

    def settle(self, items: Sequence[Item]) -> None:
        """Acknowledge the messages, before anything is published: a blocked publisher must not delay that."""
        self.confirmed.clear()
        self.consumer.settle(finished(items))

    def publish(self, copies: Sequence[Copy]) -> None:
        """Send the committed copies by the transport. If the rows themselves are the queue, wake the lanes that wait
        for them."""
        if copies and self.transport.hops:
            receipts = self.transport.send([one for one in copies if not one.delay])
            self.confirmed += record(self.store, receipts, {one.row: BORN for one in copies})
        elif copies:
            self.wake({one.flow for one in copies})

    # ------------------------------------------------------------ what the steps decide

    def together(self, deliveries: Sequence[Delivery]) -> int:
        """Return how many of these messages may run in one batch: half as many for each delivery without an outcome.
        One of them may kill the process and its supervisor too, so that nobody reports which one it was."""
        most = max((one.deliveries for one in deliveries), default=0)
        return max(1, self.flow.reach >> max(0, most - TRUSTED_DELIVERIES))

    def claims_first(self) -> bool:
        """Return whether messages are claimed before they are handled: handlers that take the transaction run inside
        it, unless they are slow and all others would wait for it."""
        slow = self.store.serial and bool(self.paces) and median(self.paces) > SLOW_SECONDS
        return self.transactional and not slow

    def decide(self, item: Item) -> Outcome | None:
        """Return the outcome of a message; None if it was not handled."""
        if item.claim is None:
            return Duplicate() if item.twin is None or self._ends(item.twin) else None
        if not item.handled:
            return None
        if item.error is None:
            return Done()
        return outcome_of(item, item.error, item.claim, self.flow.retry, self.random)

    def _ends(self, twin: Item) -> bool:
        """Return whether a message has its outcome, or gets it with this commit. If not, its duplicate stays too: the
        duplicate may be the only copy that the broker still has."""
        return twin.outcome is not None or (twin.handled and twin in self.items)

    def _known(self, claims: Mapping[Identity, Claim], items: Sequence[Item]) -> None:
        """Give the claim of each identity to one item. Another item with this identity is a duplicate."""
        left, owners = dict(claims), dict[Identity, Item]()
        for item in sorted(items, key=lambda item: -item.delivery.generation):
            identity = item.delivery.identity
            item.claim = claim = left.pop(identity, None)
            item.twin = owners.get(identity) if claim is None else None
            if claim is not None:
                owners[identity] = item
            if claim and item.delivery.deliveries >= SUSPECT_DELIVERIES and self.together([item.delivery]) == 1:
                item.claim = claim._replace(suspect=True)

    def _are_claimed(self, items: Sequence[Item]) -> bool:
        """Return whether the inbox has the claims of a transaction that did not finish: then a handler committed it."""
        claims = {item.delivery.identity: item.claim for item in items if item.claimed and item.claim is not None}
        with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
            return bool(claims) and unit.holds(claims)

    def _claim_or_leave(self, unit: Unit, items: Sequence[Item]) -> None:
        """Claim the message whose handler begins the transaction by its first statement, unless it is claimed already.
        Raises Superseded if it was applied elsewhere meanwhile."""
        if not self.early:
            running = [item for item in items if item.handled and not item.claimed and item.error is None]
            self.claim(unit, running)
            if any(item.claim is None for item in running):
                raise Superseded
