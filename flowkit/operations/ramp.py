"""Ramp: the weight of a candidate rises step by step, until the candidate is promoted or rolled back."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from flowkit.errors import CommitUnknown, ConfigError, StoreConflict, Unavailable
from flowkit.operations.comparison import ENOUGH, Plan, Version, fault
from flowkit.operations.rollouts import (
    LOOK_SECONDS,
    Fleet,
    Promoted,
    RolledBack,
    Shifted,
    finish_promotion,
    finish_rollback,
    prepare,
    shown,
)
from flowkit.ports import Transport

RECOVERY_SECONDS = 10.0
"""Seconds until workers, with their backoff, send heartbeats again after the database could not be reached."""
STUCK_SECONDS = 30.0
"""Longest time in seconds for a candidate's weight to come into force; then the candidate is rolled back."""


class Ramp(NamedTuple):
    """The weights that a candidate gets one after the other, and the limits that it has to keep."""

    steps: Sequence[int]
    """Percent of the messages."""
    every: float
    """Seconds for which each step is watched."""
    plan: Plan


class Faulty(NamedTuple):
    """A version has to be rolled back."""

    version: str
    why: str


class Scarce(NamedTuple):
    """A version handled too few messages to be judged, so it keeps its weight until it has handled more."""

    version: str
    handled: int


Event = Shifted | Faulty | Scarce | Promoted | RolledBack


def climb(here: Fleet, transport: Transport, version: str, weight: int, ramp: Ramp) -> Iterator[Event]:
    """Start a rollout of `version` with `weight` percent. Returns events; taking them drives the ramp. The last event
    is Promoted or RolledBack. Blocks. Raises ConfigError."""
    rollout = prepare(here, transport, version)
    with suppress(CommitUnknown):  # the next look shows whether it was committed
        here.change(rollout.start(version, weight))
    return Climb(here, ramp, version).run()


class Climb:
    """Raises a candidate's weight step by step. A step follows when the last one kept the plan for long enough, with
    enough messages to judge. The candidate is promoted after the last step, and rolled back as soon as it breaks the
    plan. The store has the state of the rollout: after a commit with an unknown outcome, the next look shows it."""

    def __init__(self, here: Fleet, ramp: Ramp, name: str) -> None:
        """`name`: the candidate, which has its first weight."""
        self._here = here
        self._name = name
        self._ramp = ramp
        self._away = float("-inf")
        """Monotonic time of the last look that could not reach the database."""
        self._told = 0
        self._waits = False
        self._fault = ""
        """The reason to roll it back; empty: none."""
        self.goes_on = True
        """Whether the rollout continued at the last look."""

    def run(self) -> Iterator[Event]:
        """Look until the rollout is over, and yield its events. Blocks. Raises ConfigError."""
        while self.goes_on:
            yield from _patiently(self.look)
            if self.goes_on:
                time.sleep(LOOK_SECONDS)
        yield from _patiently(self.end)

    def look(self) -> Iterator[Event]:
        """Take the next step, if it is time. Blocks. Raises Unavailable, or StoreConflict if the rollout was changed
        meanwhile."""
        here, name = self._here, self._name
        try:
            rollout = here.rollout
            found = {one.role: one for one in here.versions(rollout)}
        except Unavailable:
            self._away = time.monotonic()
            raise
        self.goes_on = rollout.going_on and rollout.candidate == name
        if not self.goes_on:
            return
        if rollout.weight != self._told:
            self._told = rollout.weight
            yield Shifted(name, rollout.weight)
        calm = time.monotonic() - self._away
        if calm < RECOVERY_SECONDS:
            return
        if not self._fault:
            self._fault = self._see(found, None if rollout.settled else min(rollout.age, calm))
            if self._fault:
                yield Faulty(name, self._fault)
        if self._fault:
            here.change(rollout.roll_back())
        elif rollout.settled and rollout.age >= self._ramp.every:
            yield from self._note_scarcity(found["candidate"].figures.handled)
            if not self._waits:
                step = next((one for one in self._ramp.steps if one > rollout.weight), None)
                here.change(rollout.promote(name) if step is None else rollout.shift(step))

    def end(self) -> Iterator[Event]:
        """Finish the promotion or rollback that the last look saw. Blocks. Raises ConfigError if another operator ended
        the rollout."""
        if self._here.rollout.baseline == self._name:
            yield finish_promotion(self._here)
        elif self._fault:
            yield finish_rollback(self._here, self._here.rollout._replace(candidate=self._name))
        else:
            raise ConfigError(f"the rollout of {shown(self._name)} stops here: another operator ended it")

    def _note_scarcity(self, handled: int) -> Iterator[Event]:
        """Note whether the candidate handled too few messages to be judged, and yield that once."""
        waited, self._waits = self._waits, handled < ENOUGH
        if self._waits and not waited:
            yield Scarce(self._name, handled)

    def _see(self, found: Mapping[str, Version], unsettled: float | None) -> str:
        """The reason to roll the candidate back; empty if there is none. `unsettled`: seconds for which some workers
        have not conformed to its weight, although they could; None: all conform."""
        if unsettled is None:
            return fault(self._ramp.plan, found["baseline"], found["candidate"])
        if unsettled > STUCK_SECONDS:
            return f"after {STUCK_SECONDS:g} s some workers do not conform to its weight: their handlers hang"
        return ""


def _patiently(ask: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """Yield the events of `ask`. Ask again while the database cannot be reached, and after a conflict. Blocks."""
    while True:
        try:
            yield from ask()
            return
        except (Unavailable, StoreConflict):
            time.sleep(LOOK_SECONDS)
