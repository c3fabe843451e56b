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
"""Seconds that the handlers of one batch may run before the batch commits."""
SERIAL_BOX_SECONDS = 0.05
"""The same on a serial store. It is shorter, because all other writers wait for the transaction of the batch."""
CLOSED = "a handler committed by the driver and closed the connection"
BORN = 1
"""The token of a new message row that is leased to the lane that writes it."""
SLOW_SECONDS = 0.001
"""Seconds. On a serial store, each message of a flow whose handlers take longer gets a short transaction of its own."""
TRUSTED_DELIVERIES = 2
"""Up to this many deliveries of a message are normal: workers and connections end."""
SUSPECT_DELIVERIES = 9
"""From this many deliveries on, a message that may not share a batch any more is a suspect, even if the store has not
recorded it as one. While a suspect runs, nothing else runs in the process. The number is therefore high enough that a
few lost connections make no suspects in flows of small batches."""


@dataclass(eq=False)
class Pipeline:
    """Runs batches of one flow, for one lane. `run` is the path of a batch. Not thread-safe; every call blocks."""

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
    """Whether the lane has to pause: the worker stops, the flow rests, or a suspect waits until it can run alone. No
    further message of the batch is then handled."""
    beside: Callable[[], bool] = lambda: False
    """Whether a rollout runs, so that another version of the app may be able to read a message that this one cannot."""
    apps: Callable[[], Collection[str]] = lambda: ()
    """The names of the apps in the store. A foreign message never gets the identity of a message of these apps."""
    observe: Callable[[Sequence[Item]], None] = lambda items: None
    """Called with each batch after its commit."""
    wake: Callable[[set[str]], None] = lambda flows: None
    """Called with the names of the flows that have new message rows."""
    since: float | None = None
    """The monotonic time at which the running handler began, or None. The thread that watches deadlines reads it."""
    confirmed: list[tuple[str, int]] = field(default_factory=list)
    """(row, token) of the message rows that the transport took. The next batch removes them in its transaction."""
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=31))
    """Seconds per handler, the average of each recent batch, without the time spent waiting for the transaction."""
    spent: float = 0.0
    """Seconds that the handlers of this batch have taken."""
    process: int = field(default_factory=os.getpid)
    """The id of the process in which handlers run. A child process that a handler forks ends when the handler ends."""

    items: list[Item] = field(default_factory=list)
    """The current batch, or the last one."""
    early: bool = True
    """Whether the messages of the current batch are claimed before they are handled."""
    routes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The subscribers of each channel that this flow sends to, as the transaction of the batch sees them."""

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

        `alone`: nothing else runs in this process, so suspects may run. `careful`: each handler gets a savepoint and
        a flush. `verdict`: the error of the only message, which is recorded without running the handler.

        Raises Spoiled, Refused, Apart, StoreConflict, StoreUnavailable or TransactionEnded. Nothing is committed then,
        unless a handler itself did so (TransactionEnded) or the connection broke during COMMIT (CommitUnknown).
        """
        items = self.items = [Item(delivery) for delivery in deliveries]
        # Handlers that share the transaction run after the claim. Others run before it, to keep the transaction short.
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
                # A handler committed the claims. If the batch ran again, its messages would pass as duplicates.
                raise TransactionEnded(CLOSED) from died
            raise
        self.observe(items)
        self.settle(items)
        self.publish(copies)
        return items

    def quarantine(self, error: TransactionEnded) -> list[Item]:
        """Record the last batch after one of its handlers bypassed FlowKit and ended the transaction.

        Nobody knows whether the handlers' effects were committed. Messages whose handlers ran therefore become dead
        letters with this error. The other messages have no outcome, and are given back.
        """
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
        """Identify foreign messages, check envelopes, and decode bodies. Errors are noted, not raised. A message that
        fails gets the hash of its bytes as its id, if its own id cannot be trusted or recorded."""
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
                # The app's own validator failed. The message is treated as if its handler had failed.
                item.error = error
            if item.error is not None:
                item.handled = True
                item.unread = item.unread and self.beside()
                is_unread = item.delivery.foreign and isinstance(item.error, Undecodable) and not item.unread
                item.delivery = unread(item.delivery) if is_unread else legible(item.delivery)

    def look(self, unit: Unit, items: Sequence[Item]) -> None:
        """Read in the inbox which messages may run. Claim nothing: the handlers of this flow run outside of a
        transaction. A message row that is delivered for the first time was never claimed, so it needs no query."""
        deliveries = [item.delivery for item in items]
        if all(one.row and one.deliveries == 1 and not one.generation for one in deliveries):
            self._known({one.identity: Claim(one.attempts) for one in deliveries}, items)
        else:
            self._known(unit.look(deliveries), items)

    def claim(self, unit: Unit, items: Sequence[Item]) -> None:
        """Claim in the inbox the messages that are not claimed yet: all if `early`, otherwise those that were handled.
        A message that cannot be claimed is a duplicate: its claim is None."""
        wanted = [item for item in items if not item.claimed and (item.handled or self.early)]
        if wanted:
            self._known(unit.claim([item.delivery for item in wanted]), wanted)
            for item in wanted:
                item.claimed = item.claim is not None

    def handle(
        self, unit: Unit, items: Sequence[Item], alone: bool, careful: bool, verdict: BaseException | None
    ) -> None:
        """Call the handler for one message after the other, until the time box is used up. Failures are noted on their
        items. A failure is raised only if it leaves the transaction unusable."""
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
                raise  # Ctrl-C of a user, not a failure of the handler
            ended = unit.ended(error)
            if ended is not None:
                raise (ConnectionDied(str(ended), unit.shut) if unit.lost else ended) from error
            item.error = checked(error)
        finally:
            self.since = None
            self.slot.strike()
            item.outbox.close()
            item.body = None  # It may be large, and the pipeline keeps the items of the last batch.
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
        """Decide the outcome of each message, and write its rows in the same transaction. Returns the copies that are
        published after the commit."""
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
        """Stage and commit the batch, with one sync to disk. Returns the copies to publish. Raises Refused if the
        database refuses the transaction because of one of the messages."""
        try:
            if not self.early:
                # The handlers ran outside of the transaction. Flows that have subscribed since then get a copy, too.
                self.routes = unit.subscribers(self._channels)
            copies = self.stage(unit, items)
            unit.commit()
            return copies
        except (StoreConflict, StoreUnavailable, TransactionEnded):
            raise
        except Exception as error:
            raise Refused from error

    def settle(self, items: Sequence[Item]) -> None:
        """Tell the transport which deliveries are finished. This comes before `publish`, because a broker that blocks
        publishers must not delay acknowledgements."""
        self.confirmed.clear()
        self.consumer.settle(finished(items))

    def publish(self, copies: Sequence[Copy]) -> None:
        """Send the committed copies to the broker. Without a broker, wake the lanes that wait for message rows."""
        if copies and self.transport.hops:
            receipts = self.transport.send([one for one in copies if not one.delay])
            self.confirmed += record(self.store, receipts, {one.row: BORN for one in copies})
        elif copies:
            self.wake({one.flow for one in copies})

    # ------------------------------------------------------------ what the steps decide

    def together(self, deliveries: Sequence[Delivery]) -> int:
        """The number of these messages that may run in one batch. The number halves with each delivery of a message
        above TRUSTED_DELIVERIES: one message may kill the process with its supervisor, and nothing records which."""
        most = max((one.deliveries for one in deliveries), default=0)
        return max(1, self.flow.reach >> max(0, most - TRUSTED_DELIVERIES))

    def claims_first(self) -> bool:
        """Whether handlers run inside the transaction that claims their messages. They do so if they use the
        transaction, unless they are slow and the store is serial: then all other writers would wait."""
        slow = self.store.serial and bool(self.paces) and median(self.paces) > SLOW_SECONDS
        return self.transactional and not slow

    def decide(self, item: Item) -> Outcome | None:
        """The outcome of a message. None if the message was not handled in this batch: it then stays in the lane."""
        if item.claim is None:
            return Duplicate() if item.twin is None or self._ends(item.twin) else None
        if not item.handled:
            return None
        if item.error is None:
            return Done()
        return outcome_of(item, item.error, item.claim, self.flow.retry, self.random)

    def _ends(self, twin: Item) -> bool:
        """Whether a message has an outcome, or gets one with this commit. Otherwise its duplicate stays in the lane as
        well, because the broker may know only the duplicate."""
        return twin.outcome is not None or (twin.handled and twin in self.items)

    def _known(self, claims: Mapping[Identity, Claim], items: Sequence[Item]) -> None:
        """Give the claim of each identity to one item. Further items with the same identity are duplicates."""
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
        """Whether the inbox holds the claims of a transaction that failed: its handler has then committed it."""
        claims = {item.delivery.identity: item.claim for item in items if item.claimed and item.claim is not None}
        with self.store.unit(self.flow.name, self.flow.deadline, self.lane) as unit:
            return bool(claims) and unit.holds(claims)

    def _claim_or_leave(self, unit: Unit, items: Sequence[Item]) -> None:
        """Claim the running message when its handler's first statement begins the transaction. Raises Superseded if
        the message was claimed elsewhere since `look`."""
        if not self.early:
            running = [item for item in items if item.handled and not item.claimed and item.error is None]
            self.claim(unit, running)
            if any(item.claim is None for item in running):
                raise Superseded
