"""The faults of a run and their places, chosen by a seed, a plan or a test."""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

DULL = 0.8
"""How often a fault passes over a point of idle workers: they visit those all the time."""

LATE = {"alone": 0.3}
"""Where runs come by when most of their faults are spent: how often one more breaks there."""

RARE = {
    "backlog": 0.5, "end_solo": 0.5, "first_active": 0.5, "give back": 0.5, "park": 0.5, "refusal": 0.5, "release": 0.5,
    "exhume": 0.2, "member": 0.2, "purge_objects": 0.2, "purge_replies": 0.2,
    "bury": 0.1, "charge": 0.1, "evict": 0.1, "expire_dead": 0.1, "fold": 0.1, "free_others": 0.1, "make_active": 0.1,
    "first_mark": 0.1, "move_leases": 0.3, "move_messages": 0.3, "move_rollouts": 0.3, "move_uptime": 0.3,
    "move_workers": 0.3, "set_mark": 0.3, "renew": 0.1, "begin_solo": 0.1, "solo": 0.1,
    "begin_rollouts": 0.05, "change_rollout": 0.05, "confirm": 0.05, "keep_active": 0.05, "unpark": 0.05,
    "purge_inbox": 0.03, "send": 0.03, "put_object": 0.02, "put_reply": 0.02, "rollback": 0.02,
    "elect": 0.01, "free": 0.01, "others": 0.01, "settle": 0.01,
}  # fmt: skip
"""Where few runs come by, or few of their faults: how often a fault does not wait there for its turn."""


class Fate(Protocol):
    """Decides at each point whether something breaks there."""

    def choose(self, point: int, where: str, kinds: Sequence[str]) -> str | None:
        """One of `kinds`, which can break at this point, or None."""


class Seeded:
    """So many faults of some kinds, at random."""

    def __init__(self, seed: int, kinds: Collection[str], dull: Collection[str]) -> None:
        self._random = random.Random(seed)
        self._kinds = [kind for kind in kinds if self._random.random() < 0.6] or ["kill"]
        """A run that knows only some kinds goes deeper with these."""
        self._dull = dull
        self._spacing = self._random.choice((30, 80, 200))
        """Points between two faults, on average."""
        self._left = self._random.randint(2, 24)
        self._next = 0

    def choose(self, point: int, where: str, kinds: Sequence[str]) -> str | None:
        possible = [kind for kind in kinds if kind in self._kinds]
        if where in LATE:
            return self._random.choice(possible) if possible and self._random.random() < LATE[where] else None
        if not self._left or (point < self._next and (self._random.random() >= RARE.get(where, 0.0))):
            return None
        if not possible or (where in self._dull and self._random.random() < DULL):
            return None
        self._next = point + 1 + int(self._random.expovariate(1 / self._spacing))
        self._left -= 1
        return self._random.choice(possible)


class Planned:
    """These kinds at these points: a run seen again, or a part of one."""

    def __init__(self, plan: Mapping[int, str]) -> None:
        self._plan = plan

    def choose(self, point: int, where: str, kinds: Sequence[str]) -> str | None:
        kind = self._plan.get(point)
        return kind if kind in kinds else None


class Demanded:
    """What a test asks for breaks at the next point where it can."""

    def __init__(self) -> None:
        self.wanted: list[tuple[str, str]] = []
        """(kind, where); where is empty for anywhere."""

    def choose(self, point: int, where: str, kinds: Sequence[str]) -> str | None:
        for kind, place in self.wanted:
            if kind in kinds and place in ("", where):
                self.wanted.remove((kind, place))
                return kind
        return None
