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
"""Most seconds to wait after the first conflict of a batch. Each further conflict adds as many."""
SOLO_TRIES = 20
"""Conflicts in one batch after which a message that runs alone waits for the next batch."""
SOLO_BATCHES = 5
"""Batches with that many conflicts after which the conflict counts as a failure of the message. Its handler may raise
an error that looks like a conflict, each time that it runs."""
DEATHS = 3
"""Connections that have to die under a message that runs alone, until the message counts as the cause. The count begins
anew when the server restarts."""
Part = tuple[Sequence[Delivery], BaseException | None]
"""(deliveries, verdict): deliveries that run in one transaction, and the error with which they are known to fail."""
SPOILED = Spoiled()
"""The verdict on a part that runs once more, carefully: with a savepoint around each handler."""


class Unrecordable(FlowKitError):
    """The database refused to record the failure of a message. This error is recorded instead."""


class Triage:
    """Decides for one lane which messages run again after a failure. Not thread-safe."""

    def __init__(self, pipeline: Pipeline, log: logging.Logger) -> None:
        self._pipeline = pipeline
        self._flow = pipeline.flow
        self._log = log
        self.apart = self._flow.isolate == "single" or self._flow.settings
        """Whether each message runs in a transaction of its own."""
        self.conflicts = 0
        """The number of conflicts of the current batch."""
        self.later: list[Delivery] = []
        """Messages with more than SOLO_TRIES conflicts. They wait for the next batch."""
        self._stumbled: list[Spoiled] = []
        """Failures of handlers whose batch shared a transaction. The batch runs again."""
        self._deaths: dict[Hashable, tuple[str, int]] = {}
        """By delivery, for messages whose connection died while they ran alone: the start of the server, and the number
        of deaths since then."""
        self._crowded: Counter[Hashable] = Counter()
        """By delivery: the number of batches in which a message alone had more than SOLO_TRIES conflicts."""

    def begin(self) -> None:
        """Reset the state of the last batch. Called before each batch."""
        self.conflicts = 0
        self.later, self._stumbled = [], []

    def again(self, error: BaseException, part: Sequence[Delivery], verdict: BaseException | None) -> list[Part]:
        """The parts to run after `part` failed with `error`. The last one runs first.

        Raises the error if the whole batch has to wait. May sleep for a moment after a conflict.
        """
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
        """Forget the failures of messages that have an outcome. Called after each commit of a part.

        Logs the handlers that failed first, and succeeded when their batch ran again.
        """
        if self._deaths or self._crowded:
            for handle in (handle_of(item.delivery) for item in items if item.outcome is not None):
                self._deaths.pop(handle, None)
                self._crowded.pop(handle, None)
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
        """A failed handler had used the transaction, so nothing of the part was committed.

        If the message ran alone, its failure is recorded. Otherwise the whole part runs once more, carefully.
        If even a savepoint could not undo the failure, each message runs in a transaction of its own.
        """
        if len(part) == 1:
            return [(part, error.__cause__)]
        if verdict is SPOILED:
            return singles(part)
        self._stumbled.append(error)
        self._pipeline.context.telemetry.rerun(self._flow.name)
        return [(part, SPOILED)]

    def _run_apart(self, statement: Apart, part: Sequence[Delivery]) -> list[Part]:
        """Run each message of this flow in a transaction of its own from now on. Logged once."""
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
        """The failure to record for a message whose transaction the database refused. Raises StoreUnavailable if the
        database refuses every such record, because a right or a column is missing, or because of a trigger."""
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
        """The failure to record for a message whose connection died while the message ran alone. Raises the error as
        long as the database may be the cause: it may have restarted, or cannot be reached."""
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
        """A conflict costs no attempt. The part runs again in halves, because fewer messages collide less often.

        A message that runs alone tries SOLO_TRIES times, and then waits for the next batch. After SOLO_BATCHES such
        batches the conflict is recorded as a failure of the message.
        """
        self.conflicts += 1
        if len(part) > 1:
            return halves(part)
        time.sleep(CONFLICT_SECONDS * self.conflicts * self._pipeline.random())
        if self.conflicts <= SOLO_TRIES:
            return [(part, verdict)]
        handle = handle_of(part[0])
        # Without a handler that uses the transaction, the conflict is of FlowKit's own statements: it never counts.
        self._crowded[handle] += self._pipeline.transactional and any(item.handled for item in self._pipeline.items)
        if self._crowded[handle] >= SOLO_BATCHES:
            often = SOLO_BATCHES * SOLO_TRIES
            failure = RuntimeError(f"its transaction collided with others {often} times as it ran alone: {error}")
            return [(part, failure)]
        self._log.warning("flow %s: %s; the message waits for the next batch", self._flow.name, error)
        self.later += part
        return []


def halves(part: Sequence[Delivery]) -> list[Part]:
    """The two halves of a part. The first half runs first. Empty for a part with a single message."""
    middle = len(part) // 2
    return [(part[middle:], None), (part[:middle], None)] if middle else []


def singles(part: Sequence[Delivery]) -> list[Part]:
    """Each message as a part with a transaction of its own. The first message runs first."""
    return [([one], None) for one in reversed(part)]


def error_of(verdict: BaseException | None) -> BaseException | None:
    """The failure to record. None if the verdict is that the handlers run (again)."""
    return None if verdict is SPOILED else verdict
