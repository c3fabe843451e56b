"""Triage: decides which parts of a batch run again, and how, after its transaction failed."""

import logging
import time
from collections import Counter
from collections.abc import Hashable, Sequence

from flowkit.engine.dead_letter import describe
from flowkit.engine.item import ConnectionDied, Item, Refused, Spoiled, handle_of
from flowkit.engine.pipeline import Pipeline
from flowkit.errors import Apart, FlowKitError, StoreConflict, StoreUnavailable
from flowkit.ports import Delivery

CONFLICT_SECONDS = 0.005
SOLO_TRIES = 20
"""The number of collisions of a message that runs alone after which it waits for a later batch."""
SOLO_BATCHES = 5
"""The number of such batches after which the collisions count as a failure of the message: its handler may raise an
error that looks like a collision, each time."""
DEATHS = 3
"""The number of connections that die under a message which runs alone until the message counts as the cause, if the
server has not restarted meanwhile."""
Part = tuple[Sequence[Delivery], BaseException | None]
"""Deliveries that run in one transaction, and the verdict on them: the failure to record, SPOILED, or None."""
SPOILED = Spoiled()
"""The verdict on a part that runs once more, carefully."""


class Unrecordable(FlowKitError):
    """The database refused to record how a message failed. This error is recorded instead."""


class Triage:
    """Decides for one lane, on the lane's thread."""

    def __init__(self, pipeline: Pipeline, log: logging.Logger) -> None:
        self._pipeline = pipeline
        self._flow = pipeline.flow
        self._log = log
        self.apart = self._flow.isolate == "single" or self._flow.settings
        """Whether each message runs in a transaction of its own."""
        self.conflicts = 0
        """The number of times that this batch collided with others."""
        self.later: list[Delivery] = []
        """Messages that collided again and again, and wait for the next batch."""
        self._stumbled: list[Spoiled] = []
        """Failures of handlers whose batch shared a transaction."""
        self._deaths: dict[Hashable, tuple[str, int]] = {}
        """Messages whose connection died while they ran alone -> the start of the server, and the number of times."""
        self._crowded: Counter[Hashable] = Counter()
        """Messages that collided again and again while they ran alone -> the number of batches."""

    def begin(self) -> None:
        """Begin a batch."""
        self.conflicts = 0
        self.later, self._stumbled = [], []

    def again(self, error: BaseException, part: Sequence[Delivery], verdict: BaseException | None) -> list[Part]:
        """Return the parts to run after a part failed, the last one first. Raises the error if all have to wait.

        Blocks for some milliseconds after a collision."""
        match error:
            case Spoiled():
                return self._spoiled(error, part, verdict)
            case Apart():
                return self._run_apart(error, part)
            case Refused():
                return halves(part) or [(part, self._refused(part[0], verdict, error.__cause__))]
            case ConnectionDied():
                return singles(part) if len(part) > 1 else [(part, self.died(part[0], error))]
            case StoreConflict():
                return self._collided(error, part, verdict)
        raise error

    def end(self, items: Sequence[Item]) -> None:
        """Note that a part was committed. Logs each handler that failed, and succeeded when its batch ran again."""
        for item in items:
            if item.outcome is not None:
                self._deaths.pop(handle_of(item.delivery), None)
                self._crowded.pop(handle_of(item.delivery), None)
        for spoiled in self._stumbled:
            if any(item.delivery is spoiled.delivery and item.handled and item.error is None for item in items):
                assert spoiled.delivery is not None
                id = spoiled.delivery.message.id
                self._log.warning(
                    "flow %s: message %s: failed, and succeeded as its batch ran again at once: %s",
                    self._flow.name, id, describe(spoiled.__cause__),
                    extra={"flow": self._flow.name, "message_id": id},
                )  # fmt: skip

    def _spoiled(self, error: Spoiled, part: Sequence[Delivery], verdict: BaseException | None) -> list[Part]:
        """Decide after a handler failed that had used the transaction. A message that ran alone has failed. Several run
        again carefully, each with a savepoint, and if a savepoint could not undo the failure, each one alone."""
        if len(part) == 1:
            return [(part, error.__cause__)]
        if verdict is SPOILED:
            return singles(part)
        self._stumbled.append(error)
        self._pipeline.context.telemetry.rerun(self._flow.name)
        return [(part, SPOILED)]

    def _run_apart(self, statement: Apart, part: Sequence[Delivery]) -> list[Part]:
        """Run each message in a transaction of its own from now on."""
        if not self.apart:
            self._log.warning(
                "flow %s: its handler executes `%s`, which the next messages of its transaction would meet; from now "
                "on each runs in its own transaction, which is slower; @app.flow(…, settings=True) says it is meant",
                self._flow.name, statement,
            )  # fmt: skip
        self.apart = True
        return singles(part)

    def _refused(
        self, delivery: Delivery, verdict: BaseException | None, cause: BaseException | None
    ) -> BaseException | None:
        """Return the failure to record for a message whose transaction the database refused.

        Raises StoreUnavailable if the database refuses that record too: a right or a column is missing, or a trigger
        raises an error."""
        known = error_of(verdict)
        if known is None:
            return cause
        if isinstance(known, Unrecordable):
            raise StoreUnavailable(
                f"the database refuses to record what became of message {delivery.message.id} of flow "
                f"{self._flow.name}: {describe(cause)}; look at the rights, columns and triggers of FlowKit's tables"
            )
        return Unrecordable(f"the database refused to record how it failed: {describe(cause)}")

    def died(self, delivery: Delivery, error: ConnectionDied) -> BaseException:
        """Return the failure to record for a message whose connection died while it ran alone.

        Raises the error while the cause may be the database, which restarts or cannot be reached."""
        started = self._pipeline.store.started()
        known, deaths = self._deaths.get(handle_of(delivery), (started, 0))
        deaths = deaths + 1 if known == started else 1
        self._deaths[handle_of(delivery)] = started, deaths
        if deaths < DEATHS:
            raise error
        return RuntimeError(
            f"its connection died {DEATHS} times as the message ran alone: {error}; the handler may neither close the "
            "connection nor end its session at the server"
        )

    def _collided(self, error: StoreConflict, part: Sequence[Delivery], verdict: BaseException | None) -> list[Part]:
        """Decide after a collision, which is no attempt. Fewer messages run together then, so that they collide less.
        A message that collides alone in batch after batch has failed."""
        self.conflicts += 1
        if len(part) > 1:
            return halves(part)
        time.sleep(CONFLICT_SECONDS * self.conflicts * self._pipeline.random())
        if self.conflicts <= SOLO_TRIES:
            return [(part, verdict)]
        handle = handle_of(part[0])
        # A handler that takes no transaction cannot collide. Only statements of FlowKit do then, which may wait.
        self._crowded[handle] += self._pipeline.transactional and any(item.handled for item in self._pipeline.items)
        if self._crowded[handle] >= SOLO_BATCHES:
            often = SOLO_BATCHES * SOLO_TRIES
            failure = RuntimeError(f"its transaction collided with others {often} times as it ran alone: {error}")
            return [(part, failure)]
        self._log.warning("flow %s: %s; the message waits for the next batch", self._flow.name, error)
        self.later += part
        return []


def halves(part: Sequence[Delivery]) -> list[Part]:
    """Return the two halves of a part; no part for a single message."""
    middle = len(part) // 2
    return [(part[middle:], None), (part[:middle], None)] if middle else []


def singles(part: Sequence[Delivery]) -> list[Part]:
    """Return parts of one message each."""
    return [([one], None) for one in reversed(part)]


def error_of(verdict: BaseException | None) -> BaseException | None:
    """Return the failure that a verdict tells; None if the handlers are to run."""
    return None if verdict is SPOILED else verdict
