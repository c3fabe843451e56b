"""A lane: receives the messages of one flow, a bounded number at once, and runs them in batches."""

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from flowkit.engine.dead_letter import describe
from flowkit.engine.in_flight import Slot
from flowkit.engine.item import Item
from flowkit.engine.pipeline import Pipeline
from flowkit.engine.relay import REMOVE_SECONDS
from flowkit.engine.triage import SPOILED, Part, Triage, error_of, singles
from flowkit.errors import TransactionEnded
from flowkit.message import BATCH_BYTES
from flowkit.ports import Consumer, Delivery, Identity

FIRST_BATCH = 32
"""Most messages of a lane's first batch, if its handler uses the transaction."""
BATCH_STEP = 8
"""Messages by which the limit of a batch grows after a full batch without a conflict."""


class Lane:
    """Receives batches of one flow and runs them through its pipeline. Only one thread at a time may step it. Any
    thread may use `late` and `in_flight`."""

    def __init__(
        self,
        pipeline: Pipeline,
        consumer: Consumer,
        worker: str,
        stops: dict[str, str],
        carried: deque[tuple[str, int]],
    ) -> None:
        """`worker`: the id of the worker. All lanes of the worker share the other two. `stops`: the stopped flows, each
        with the reason. `carried`: (row, token) of the message rows that the relay of the worker removes."""
        self.pipeline = pipeline
        self.flow = pipeline.flow
        self.consumer = consumer
        self.held: list[Delivery] = []
        """Deliveries for the next batch: received, but not settled."""
        self.suspects: list[Delivery] = []
        """Deliveries that may have killed their worker. `step_alone` runs each of them alone."""
        self.working: Sequence[Delivery] = ()
        """Deliveries of the batch that runs."""
        self.full = False
        """Whether the last `receive` reached the limit. There may then be messages for another lane."""
        self.left = False
        """Whether the lane has stopped receiving: it is drained, or its flow is stopped."""
        self._slow = False
        """Whether the last batch took longer than REMOVE_SECONDS."""
        self._worker = worker
        self._stops = stops
        self._carried = carried
        self._ended: TransactionEnded | None = None
        self._solo: set[Identity] = set()
        """Suspects that the store has recorded as running alone here, and that have no outcome yet."""
        self._limit = min(FIRST_BATCH, self.flow.batch) if pipeline.transactional else self.flow.batch
        self._log = logging.getLogger(f"flowkit.flow.{self.flow.name}")
        self.triage = Triage(pipeline, self._log)

    def step(self) -> bool:
        """Run one batch. False if there was nothing to do. Blocks until the batch is committed.

        Raises StoreUnavailable, among other errors. The lane then keeps its deliveries for the next step.
        """
        self.full = False
        if self.stopped:
            self._leave()
            return self.flush()
        if self._ended is not None:
            self._quarantine()
            return True
        there = self.held or self.consumer.receive(self._limit)
        sizes = list(accumulate(len(one.message.body) for one in there))
        count = bisect_left(sizes, BATCH_BYTES) + 1  # including the message that reaches the limit
        batch, self.held = there[:count], there[count:]
        self.full = len(there) >= self._limit or count <= len(there)
        if not batch:
            return self.flush()
        if self._slow:
            self.flush()  # This batch may be slow, too. The rows' lease could expire, and a relay would resend them.
        clock = self.pipeline.context.clock
        began = clock.monotonic()
        self._process(batch)
        self._slow = clock.monotonic() - began > REMOVE_SECONDS
        return True

    def step_alone(self) -> bool:
        """Run one suspect. The caller makes sure that nothing else runs in this process. False if there is none."""
        if self.stopped or self._ended is not None:
            return self.step()
        if not self.suspects:
            return False
        self._begin_solo(self.suspects[0])
        self._process([self.suspects.pop(0)], alone=True)
        return True

    def rest(self) -> bool:
        """Wait for handlers that run outside of `step`. Returns False at once, because this lane has none."""
        return False

    def flush(self) -> bool:
        """Pass the message rows that the transport took to the relay, which removes them. False if there were none.

        The next batch removes these rows in its transaction. If no batch follows at once, the relay removes many of
        them together: a transaction for each would double the cost of a lone message.
        """
        confirmed = self.pipeline.confirmed
        left = bool(confirmed)
        self._carried.extend(confirmed)
        confirmed.clear()
        return left

    def drain(self) -> None:
        """Give back all deliveries, and stop receiving. Nothing may step the lane afterwards."""
        self.flush()
        self._leave()

    @property
    def running(self) -> int:
        """The number of handlers that run outside of `step`."""
        return 0

    @property
    def unfinished(self) -> bool:
        """Whether messages are in flight outside of `step`, so that a drain has to wait for them."""
        return False

    def late(self, now: float) -> Slot | None:
        """The slot of the message whose handler runs past its deadline, or None. `now`: the monotonic time."""
        since = self.pipeline.since
        return self.pipeline.slot if since is not None and now - since > self.flow.deadline else None

    @property
    def stopped(self) -> str:
        """The reason why the flow is stopped. Empty if it runs."""
        return self._stops.get(self.flow.name, "")

    @property
    def expectant(self) -> bool:
        """Whether another step has something to do, even without a notification of new messages."""
        unfinished = self._ended is not None and not self.stopped
        return bool(self.full or self.held or self.suspects or self.pipeline.confirmed or unfinished)

    @property
    def in_flight(self) -> list[Delivery]:
        """All deliveries that are received and not settled. Any thread may read it."""
        return [*self.held, *self.suspects, *self.working]

    def _process(self, deliveries: Sequence[Delivery], alone: bool = False) -> None:
        """Run deliveries through the pipeline. `Triage` cuts the batch into smaller parts after failures."""
        triage = self.triage
        triage.begin()
        todo = self._parts(deliveries)
        handled = 0
        while todo:
            if handled and self.pipeline.halted():
                self._hold(todo)
                break
            part, verdict = todo.pop()
            self.working = [one for rest, _ in (*todo, (part, None)) for one in rest]
            careful = verdict is SPOILED or (self.flow.isolate == "savepoint" and len(part) > 1)
            try:
                items = self.pipeline.run(part, alone, careful, error_of(verdict))
            except TransactionEnded as error:
                self._hold([*todo, (triage.later, None)])
                self.working = part
                self._ended = error
                return self._quarantine()
            except BaseException as error:
                try:
                    todo += triage.again(error, part, verdict)
                except BaseException:
                    self._hold([*todo, (part, None), (triage.later, None)])
                    self.working = ()
                    raise
            else:
                handled += len(items)
                self._keep(items)
                triage.end(items)
        self.working = ()
        self.held += triage.later
        if triage.conflicts:
            self._limit = max(1, self._limit >> triage.conflicts)
        elif len(deliveries) >= self._limit < self.flow.batch:
            self._limit = min(self.flow.batch, self._limit + BATCH_STEP)

    def _parts(self, deliveries: Sequence[Delivery]) -> "list[Part]":
        """The parts in which a batch runs first. The last part runs first."""
        pipeline = self.pipeline
        if pipeline.transactional:
            # Batches of several lanes touch the same rows in the same order, so that they do not deadlock.
            deliveries = sorted(deliveries, key=lambda one: str(one.message.key or ""))
        if self.triage.apart or (pipeline.transactional and not pipeline.claims_first()):
            return singles(deliveries)
        return [(deliveries, None)]

    def _hold(self, todo: "Sequence[Part]") -> None:
        """Keep the deliveries of these parts for the next step."""
        self.held += [one for part, _ in todo for one in part]

    def _keep(self, items: Sequence[Item]) -> None:
        """Log the failures of a batch, and keep the deliveries that have no outcome."""
        for item in items:
            if item.outcome is not None:
                self._solo.discard(item.delivery.identity)
            if item.error is not None:
                self._log.warning(
                    "flow %s: message %s: %s: %s",
                    self.flow.name,
                    item.delivery.message.id,
                    type(item.outcome).__name__.lower(),
                    describe(item.error),
                    extra={"flow": self.flow.name, "message_id": item.delivery.message.id},
                )
            if item.outcome is None:
                suspect = item.claim is not None and item.claim.suspect
                (self.suspects if suspect else self.held).append(item.delivery)

    def _begin_solo(self, suspect: Delivery) -> None:
        """Record in the store that a suspect runs alone, so that other workers know it if this process dies.

        A message without an id of its own is not recorded: it has another id each time that it arrives.
        """
        if not suspect.unidentified:
            self._solo.add(suspect.identity)
            self.pipeline.store.suspects.begin_solo(suspect, self._worker)

    def _quarantine(self) -> None:
        """Record the outcomes of the last batch, and stop the flow. If the store cannot be reached, the next step tries
        again."""
        assert self._ended is not None
        self._keep(self.pipeline.quarantine(self._ended))
        self.working = ()
        self._stops[self.flow.name] = (
            f"flow {self.flow.name} is stopped: its handler went round FlowKit and ended the transaction by the "
            "database driver; the messages that it had handled are dead letters, because what became of their effects "
            "is unknown; remove the call and start the worker again"
        )
        self._log.error("%s", self.stopped)
        self._leave()

    def give_back(self) -> bool:
        """Give all deliveries back to the transport, because a flow that rests may rest for long. False if there were
        none."""
        for identity in list(self._solo):  # The store has to know this before other workers receive the messages.
            self.pipeline.store.suspects.end_solo(identity, self._worker)
            self._solo.discard(identity)
        held = [*self.held, *self.suspects]
        if held:
            self.consumer.release(held)
            self.held, self.suspects = [], []
        return bool(held)

    def _leave(self) -> None:
        """Give back all deliveries, also those that the consumer has prefetched, and stop receiving."""
        self.give_back()
        if not self.left:
            self.consumer.close()
            self.left = True
