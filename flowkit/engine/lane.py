"""A lane: one bounded consumer of one flow."""

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
BATCH_STEP = 8


class Lane:
    """Receives batches of one flow and runs them through its pipeline. One thread at a time may step it."""

    def __init__(
        self,
        pipeline: Pipeline,
        consumer: Consumer,
        worker: str,
        stops: dict[str, str],
        carried: deque[tuple[str, int]],
    ) -> None:
        """`worker`: its id. Shared by the lanes of a worker: `stops`, the flows that run no more, and why; `carried`,
        the rows that its relay removes."""
        self.pipeline = pipeline
        self.flow = pipeline.flow
        self.consumer = consumer
        self.held: list[Delivery] = []
        """Messages that are received and not settled: the next batch."""
        self.suspects: list[Delivery] = []
        """Messages that ran when their process died. Each runs alone, by `step_alone`."""
        self.working: Sequence[Delivery] = ()
        """Messages of the batch that runs."""
        self.full = False
        """Whether the lane received all that it could take, so that there may be more for another lane."""
        self.left = False
        """Whether the lane receives no more, because it is drained or its flow is stopped."""
        self._slow = False
        """Whether the last batch took long."""
        self._worker = worker
        self._stops = stops
        self._carried = carried
        self._ended: TransactionEnded | None = None
        self._solo: set[Identity] = set()
        """Messages that the store records as running alone here, and that have no outcome yet."""
        self._limit = min(FIRST_BATCH, self.flow.batch) if pipeline.transactional else self.flow.batch
        self._log = logging.getLogger(f"flowkit.flow.{self.flow.name}")
        self.triage = Triage(pipeline, self._log)

    def step(self) -> bool:
        """Run one batch of the messages that are there. Returns False if there was none. Blocks.

        Raises StoreUnavailable; the lane then keeps the messages that it held."""
        self.full = False
        if self.stopped:
            self._leave()
            return self.flush()
        if self._ended is not None:
            self._quarantine()
            return True
        there = self.held or self.consumer.receive(self._limit)
        sizes = list(accumulate(len(one.message.body) for one in there))
        count = bisect_left(sizes, BATCH_BYTES) + 1  # up to the message that reaches the limit
        batch, self.held = there[:count], there[count:]
        self.full = len(there) >= self._limit or count <= len(there)
        if not batch:
            return self.flush()
        if self._slow:
            self.flush()  # the leases of these rows might expire before this batch ends, and a relay send them again
        clock = self.pipeline.context.clock
        began = clock.monotonic()
        self._process(batch)
        self._slow = clock.monotonic() - began > REMOVE_SECONDS
        return True

    def step_alone(self) -> bool:
        """Run one suspect, while nothing else runs in this process. Returns False if there is none. Blocks."""
        if self.stopped or self._ended is not None:
            return self.step()
        if not self.suspects:
            return False
        self._begin_solo(self.suspects[0])
        self._process([self.suspects.pop(0)], alone=True)
        return True

    def rest(self) -> bool:
        """Wait for handlers that run outside of `step`. Returns False at once if there are none."""
        return False

    def flush(self) -> bool:
        """Leave the rows that the transport took to the relay, because no batch follows that would remove them. A
        transaction for them would cost a single message as much as its own. Returns False if there were none."""
        confirmed = self.pipeline.confirmed
        left = bool(confirmed)
        self._carried.extend(confirmed)
        confirmed.clear()
        return left

    def drain(self) -> None:
        """Give back everything that is held. No thread steps the lane any more. Blocks."""
        self.flush()
        self._leave()

    @property
    def running(self) -> int:
        """The number of handlers that run outside of `step`."""
        return 0

    @property
    def unfinished(self) -> bool:
        """Whether messages are handled outside of `step`, for which a worker that stops should wait."""
        return False

    def late(self, now: float) -> Slot | None:
        """Return the slot of a message whose handler runs past its deadline. `now`: by the monotonic clock."""
        since = self.pipeline.since
        return self.pipeline.slot if since is not None and now - since > self.flow.deadline else None

    @property
    def stopped(self) -> str:
        """Why its flow runs no more; empty while it runs."""
        return self._stops.get(self.flow.name, "")

    @property
    def expectant(self) -> bool:
        """Whether another step would find something to do, even without news."""
        unfinished = self._ended is not None and not self.stopped
        return bool(self.full or self.held or self.suspects or self.pipeline.confirmed or unfinished)

    @property
    def in_flight(self) -> list[Delivery]:
        """Everything received and not settled. Any thread may look."""
        return [*self.held, *self.suspects, *self.working]

    def _process(self, deliveries: Sequence[Delivery], alone: bool = False) -> None:
        """Bring deliveries to their outcomes, in parts as small as needed: see `Triage`."""
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
        """Return the parts in which a batch is run first."""
        pipeline = self.pipeline
        if pipeline.transactional:
            # Two batches that touch the same rows then do so in the same order, and do not deadlock.
            deliveries = sorted(deliveries, key=lambda one: str(one.message.key or ""))
        if self.triage.apart or (pipeline.transactional and not pipeline.claims_first()):
            return singles(deliveries)
        return [(deliveries, None)]

    def _hold(self, todo: "Sequence[Part]") -> None:
        """Keep these messages for the next step."""
        self.held += [one for part, _ in todo for one in part]

    def _keep(self, items: Sequence[Item]) -> None:
        """Log the failures of a batch, and keep the messages that were not handled."""
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
        """Record that a message runs alone here, for the process that comes after this one. A message that gets another
        id at each arrival is not recorded: nobody would recognize it."""
        if not suspect.unidentified:
            self._solo.add(suspect.identity)
            self.pipeline.store.suspects.begin_solo(suspect, self._worker)

    def _quarantine(self) -> None:
        """Record the last batch, and stop the flow. If the store fails, the next step tries again."""
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
        """Give back everything that is held, because a flow may rest for long. Returns False if nothing was. Blocks."""
        for identity in list(self._solo):  # before others get these messages
            self.pipeline.store.suspects.end_solo(identity, self._worker)
            self._solo.discard(identity)
        held = [*self.held, *self.suspects]
        if held:
            self.consumer.release(held)
            self.held, self.suspects = [], []
        return bool(held)

    def _leave(self) -> None:
        """Give back everything that is held, and all that the consumer has fetched ahead."""
        self.give_back()
        if not self.left:
            self.consumer.close()
            self.left = True
