"""The dispatcher: decides which lane a thread of the worker runs next."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from flowkit.engine.directions import Directions
from flowkit.engine.in_flight import State
from flowkit.engine.lane import Lane
from flowkit.engine.outages import WATCH_SECONDS, Outages
from flowkit.engine.relay import Relay

BEAT_SECONDS = 1.0
_log = logging.getLogger("flowkit.worker")


class Dispatcher:
    """Knows the lanes of one worker. Those that may have work are *hot*, and run next. Any thread may call it."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        directions: Directions,
        outages: Outages,
        relay: Relay,
        stopping: threading.Event,
        ended: threading.Event,
        died: Callable[[], None],
    ) -> None:
        """`stopping` is set when no lane may begin anything more, `ended` when none may continue. `died` is called when
        a thread has died."""
        self._lanes = lanes
        self._by_flow: dict[str, list[Lane]] = {}
        for lane in lanes:
            self._by_flow.setdefault(lane.flow.name, []).append(lane)
        self._directions = directions
        self._outages = outages
        self._relay = relay
        self._stopping = stopping
        self._ended = ended
        self._died = died
        self._changed = threading.Condition()
        self._hot: deque[Lane] = deque(lanes)
        self._running: set[Lane] = set()
        self.alone = False
        """Whether the lane that runs has the process for itself, because it runs a suspect."""
        self.hushed = False
        """Whether a suspect waits until nothing else runs. Lanes begin nothing meanwhile."""

    @property
    def unfinished(self) -> bool:
        """Whether `async def` handlers run, or wait for their commit."""
        return any(lane.unfinished for lane in self._lanes)

    @property
    def busy(self) -> set[Lane]:
        """The lanes that run, or whose handlers run."""
        return self._running | {lane for lane in self._lanes if lane.unfinished}

    def heat(self, flows: set[str]) -> None:
        """Wake the lanes of these flows that hold messages. If none of a flow holds any, wake one lane: an idle one, or
        a running one, which looks again when it is done."""
        with self._changed:
            for flow in flows:
                useful = [lane for lane in self._by_flow.get(flow, ()) if lane.unfinished or not lane.left]
                cold = [lane for lane in useful if lane not in self._hot]
                idle = [lane for lane in cold if lane not in self._running]
                woken = [lane for lane in cold if lane.consumer.stocked] or idle[:1] or cold[:1]
                self._hot += woken
                self._changed.notify(len(woken))

    def heat_all(self) -> None:
        """Wake lanes of all flows."""
        self.heat({lane.flow.name for lane in self._lanes})

    def heat_lane(self, lane: Lane) -> None:
        """Wake this lane and no other, because only this lane would find something."""
        with self._changed:
            if lane not in self._hot:
                self._hot.append(lane)
                self._changed.notify()

    def look_again(self) -> None:
        """Make each thread look again which lanes may run."""
        with self._changed:
            self._changed.notify_all()

    def work(self) -> None:
        """Take the next lane that may have work, step it, and keep it hot while it expects more; again and again. The
        threads of the worker run this. Blocks until the worker stops."""
        while not self._stopping.is_set() or (self.unfinished and not self._ended.is_set()):
            lane = self._next()
            if lane is not None and not self._run(lane):
                return

    def _run(self, lane: Lane) -> bool:
        """Step a lane. Returns False if the thread has to end."""
        try:
            if self._directions.rests(lane.flow) and not lane.unfinished:
                self._outages.guarded(lane.give_back, "store")
            else:
                self._outages.guarded(lane.step_alone if self.alone else lane.step, "store")
        except BaseException:
            # No Exception gets here: the message that ran last is a suspect, as after a death of its process.
            lane.pipeline.slot.mark(State.ALONE if self.alone else State.RUNNING)
            _log.exception("flow %s: a thread of this worker died; the worker is replaced", lane.flow.name)
            self._died()
            return False
        finally:
            with self._changed:
                self._running.discard(lane)
                self.alone = False
                if lane.expectant and lane not in self._hot:
                    self._hot.append(lane)
                if lane.full:
                    self.heat({lane.flow.name})
                self._changed.notify_all()
        return True

    def _next(self) -> Lane | None:
        """Return the next hot lane that no thread runs. A lane with suspects waits until no lane and no handler runs.

        Waits, and returns None, while there is none."""
        with self._changed:
            idle = [lane for lane in self._hot if lane not in self._running]
            if self._stopping.is_set() or self._directions.current:
                ending = self._stopping.is_set()
                idle = [lane for lane in idle if lane.unfinished or not (ending or self._is_idle(lane))]
            suspect = next((lane for lane in idle if lane.suspects), None)
            self.hushed = suspect is not None
            alone = suspect is not None and not self._running and not any(one.running for one in self._lanes)
            if suspect is None:
                lane = next(iter(idle), None)
            else:  # no other lane starts before the suspect ran; handlers that have begun may finish
                lane = suspect if alone else next((one for one in idle if one.running), None)
            held_back = self._relay.clogged and not self._stopping.is_set()  # a worker that stops finishes all the same
            if lane is None or self.alone or held_back:
                soon = held_back or self._stopping.is_set()
                self._changed.wait(WATCH_SECONDS if soon else BEAT_SECONDS)
                return None
            self._hot.remove(lane)
            self._running.add(lane)
            self.alone = alone
            return lane

    def _is_idle(self, lane: Lane) -> bool:
        """Whether a lane rests, and has nothing to give back."""
        return self._directions.rests(lane.flow) and not (lane.held or lane.suspects)
