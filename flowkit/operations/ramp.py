"""Ramp: a candidate that gets ever more by itself, until it is promoted or rolled back."""

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
"""Time that workers take, with their backoff, to say that they are there after the store was away."""
STUCK_SECONDS = 30.0
"""Longest time for the share of a candidate to come into force; after it the candidate is rolled back."""


class Ramp(NamedTuple):
    """The steps of a candidate that gets more by itself, and the limits that it has to keep."""

    steps: Sequence[int]
    """Percent of the messages."""
    every: float
    """Seconds for which each of them is watched."""
    plan: Plan


class Faulty(NamedTuple):
    """A version has to go back."""

    version: str
    why: str


class Scarce(NamedTuple):
    """A version goes on when more messages came to it than these."""

    version: str
    handled: int


Event = Shifted | Faulty | Scarce | Promoted | RolledBack


def climb(here: Fleet, transport: Transport, version: str, weight: int, ramp: Ramp) -> Iterator[Event]:
    """Let a version have so many percent of the messages. While the events that are returned are taken, it gets more by
    itself; the last one is Promoted or RolledBack. Blocks. Raises ConfigError."""
    rollout = prepare(here, transport, version)
    with suppress(CommitUnknown):  # the next look shows it
        here.change(rollout.start(version, weight))
    return Climb(here, ramp, version).run()


class Climb:
    """A candidate that gets more by itself, step by step, each when the last one went well for long enough, and enough
    messages came to tell; it is promoted in the end, or rolled back as soon as it is worse. How far it is, is in the
    store: what was done with an unknown outcome is seen at the next look."""

    def __init__(self, here: Fleet, ramp: Ramp, name: str) -> None:
        """`name`: the candidate, which has its first share."""
        self._here = here
        self._name = name
        self._ramp = ramp
        self._away = float("-inf")
        """When the store was away last, by the monotonic clock."""
        self._told = 0
        self._waits = False
        self._fault = ""
        """Why it has to go back."""
        self.goes_on = True
        """Whether the rollout does, as the last look saw it."""

    def run(self) -> Iterator[Event]:
        """Look until the rollout is over, and yield what happens."""
        while self.goes_on:
            yield from _patiently(self.look)
            if self.goes_on:
                time.sleep(LOOK_SECONDS)
        yield from _patiently(self.end)

    def look(self) -> Iterator[Event]:
        """Do what is next. Raises Unavailable, or StoreConflict where somebody else was quicker."""
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
        """Finish what the last look saw. Raises ConfigError when somebody else ended it."""
        if self._here.rollout.baseline == self._name:
            yield finish_promotion(self._here)
        elif self._fault:
            yield finish_rollback(self._here, self._here.rollout._replace(candidate=self._name))
        else:
            raise ConfigError(f"the rollout of {shown(self._name)} does not go on: it was ended by somebody else")

    def _note_scarcity(self, handled: int) -> Iterator[Event]:
        """Note whether so many messages tell too little, and say so once."""
        waited, self._waits = self._waits, handled < ENOUGH
        if self._waits and not waited:
            yield Scarce(self._name, handled)

    def _see(self, found: Mapping[str, Version], unsettled: float | None) -> str:
        """Why the candidate has to go back; empty if it may stay. `unsettled`: for how many seconds workers could have
        come to its share, and have not."""
        if unsettled is None:
            return fault(self._ramp.plan, found["baseline"], found["candidate"])
        if unsettled > STUCK_SECONDS:
            return f"after {STUCK_SECONDS:g} s some workers have not come to its share: their handlers hang"
        return ""


def _patiently(ask: Callable[[], Iterator[Event]]) -> Iterator[Event]:
    """Yield what it yields. Ask again while the store is away, and after a change by somebody else."""
    while True:
        try:
            yield from ask()
            return
        except (Unavailable, StoreConflict):
            time.sleep(LOOK_SECONDS)
