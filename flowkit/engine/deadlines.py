"""Deadlines: finds handlers that run past their deadline. A thread cannot be ended, so the worker is replaced."""

import logging
import threading
from collections.abc import Callable, Sequence

from flowkit.engine.async_lane import AsyncLane
from flowkit.engine.dispatcher import BEAT_SECONDS, Dispatcher
from flowkit.engine.in_flight import Slot, State
from flowkit.engine.lane import Lane
from flowkit.engine.readiness import Readiness
from flowkit.ports import Clock

DEADLINE_STEP_SECONDS = 0.05
"""Least seconds between two checks."""
DEADLINE_STEPS = 100
"""Checks within the shortest deadline of the worker's flows."""
_log = logging.getLogger("flowkit.worker")


class Deadlines:
    """Watches the deadlines of the handlers of one worker."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        dispatcher: Dispatcher,
        readiness: Readiness,
        clock: Clock,
        stop: Callable[[], None],
    ) -> None:
        """`stop`: begins the shutdown of the worker. Called once, when a handler runs past its deadline."""
        self._lanes = lanes
        self._dispatcher = dispatcher
        self._readiness = readiness
        self._clock = clock
        self._stop = stop
        self.overdue = False
        """Whether a handler ran past its deadline, so that the process has to be replaced."""

    def watch(self) -> None:
        """Check all lanes. At the first handler past its deadline, mark its slot, become unready, and call `stop`."""
        for lane in self._lanes:
            slot = self._late(lane)
            if slot is not None and not self.overdue:
                if not self._dispatcher.alone:  # Alone, the end of the process is an attempt anyway.
                    slot.mark(State.OVERDUE)
                self.overdue = True
                self._readiness.state = "unready"
                _log.error(
                    "flow %s: its handler runs past its deadline of %gs; this worker finishes its other messages and "
                    "is replaced; bound the handler's waiting, or raise deadline=", lane.flow.name, lane.flow.deadline
                )  # fmt: skip
                self._stop()

    def guard(self, ended: threading.Event, serial: bool, abandon: Callable[[], None]) -> None:
        """Watch until a handler runs past its deadline, or until `ended` is set. Blocks: it has a thread of its own.

        `serial`: whether the store is serial. A handler past its deadline may then hold the transaction that all others
        wait for, so `abandon` is called to end the process at once.
        """
        shortest = min((lane.flow.deadline for lane in self._lanes), default=BEAT_SECONDS)
        step = min(BEAT_SECONDS, max(DEADLINE_STEP_SECONDS, shortest / DEADLINE_STEPS))
        while not self.overdue:
            self.watch()
            if not self.overdue and ended.wait(step):
                return
        if serial:
            abandon()

    def hung(self) -> set[Lane]:
        """The lanes that a handler past its deadline blocks. An `async def` handler blocks all lanes of the loop."""
        hung = {lane for lane in self._lanes if self._late(lane)}
        concurrent = {lane for lane in self._lanes if isinstance(lane, AsyncLane)}
        return hung | concurrent if hung & concurrent else hung

    def _late(self, lane: Lane) -> Slot | None:
        return lane.late(self._clock.monotonic())
