"""The nouns of the store that hold the fleet: workers, directions, groups, rollouts, uptime."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol


class WorkerInfo(NamedTuple):
    """Who a worker is."""

    id: str
    app: str
    host: str
    pid: int
    group: str = ""
    """Of the instances that are active, or spare, together; empty where there are no spare ones."""
    site: str = ""
    version: str = ""


class Figures(NamedTuple):
    """What a worker handled since the last change of its app's rollout, at most in the last minute."""

    handled: int = 0
    failed: int = 0
    """Of these: attempts that failed, and what this version could not read."""
    p99: float = 0.0
    """Seconds from when a worker received a message to the commit of what came of it, at 99 %."""


class Fleet(Protocol):
    """The workers."""

    def join(self, worker: WorkerInfo, epoch: int = 0) -> None:
        """Record a worker, and the epoch of the rollout that it goes by. Hold its liveness lock for as long as this
        process lives."""

    def leave(self, worker: str) -> None:
        """Forget a worker that ended in order."""

    def beat(self, worker: str, state: str, epoch: int = 0, figures: Figures | None = None) -> None:
        """Say that a worker is alive, which epoch of its app's rollout it goes by, and what it handled lately; free the
        leases of those that are dead."""

    def ready(self, app: str) -> int:
        """How many workers of an app are ready, by their heartbeats."""

    def is_staffed(self, app: str) -> bool:
        """Whether a worker of an app lives, ready or not, as far as its lock or its heartbeats tell."""

    def members(self) -> set[str]:
        """The workers of all apps that are recorded."""


PAUSED, DRAINED, WORKERS, LANES = DIRECTIONS = ("paused", "drained", "workers", "lanes")
"""What the fleet can be directed to: flows, or all of an app, begin nothing; they get nothing over HTTP; each instance
of an app has so many worker processes; each worker has so many lanes of a flow."""
NORMAL, MINIMUM = "normal", "minimum"
"""So many workers of an app take its normal service, and its minimum service: with fewer, flows rest."""


class Directions(Protocol):
    """Settings that operators make for flows and apps while they run."""

    def set(self, what: str, names: Collection[str], value: int | None) -> None:
        """Direct the whole fleet: set something of these flows or apps, one of the DIRECTIONS; None: set it no more."""

    def read(self) -> Mapping[tuple[str, str], int]:
        """What is set: (what, name) -> value."""


class Uptime(Protocol):
    """The times at which apps gave at least their minimum service."""

    def note(self, app: str) -> None:
        """An app gives at least its minimum service now."""

    def read(self, app: str, seconds: float) -> Sequence[tuple[float, float]]:
        """From and until when it did, in seconds before now, in order: as far back as this, and the last one that began
        before."""


class Standing(NamedTuple):
    """Which group of an app's instances is active, for how many seconds from now, and the token of that time."""

    group: str
    token: int
    seconds: float


class Fence(NamedTuple):
    """What a process commits counts only while its group is active under this token."""

    app: str
    group: str
    token: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is called in the store."""
        return f"active:{self.app}", self.group, self.token


class Groups(Protocol):
    """The active group of instances of each app."""

    def stand(self, app: str, group: str, seconds: float, ready: bool) -> Standing | None:
        """Which group of the app is active; None: none ever was. If it is this one, it stays so for `seconds` more. If
        the time of the last one is over and this one is `ready`, it is active from now on, and what members of others
        held is free; but no group is while workers without one were heard of in the last `seconds`. These are the group
        "", which only keeps others away: its time is over when it does no more.
        """

    def step_down(self, app: str, group: str, silent: float) -> None:
        """Let the time of this group be over, unless a worker of it was heard of in the last `silent` seconds."""

    def standing(self, app: str) -> Standing | None:
        """The same, by a look that changes nothing."""


class Rollout(NamedTuple):
    """Which versions of an app run side by side.

    The candidate handles `weight` percent of the messages, by the hash of their keys, and the baseline all others.
    While it is not `settled`, some workers still go by the weight `before`, or finish what they began by it.
    """

    baseline: str
    candidate: str = ""
    """The version that is rolled out, or was rolled out last; empty if none ever was."""
    weight: int = 0
    before: int = 0
    epoch: int = 0
    """Raised by each change."""
    age: float = 0.0
    """Seconds since the last change."""
    settled: bool = True

    @property
    def going_on(self) -> bool:
        return self.weight > 0

    @property
    def reach(self) -> int:
        """Of so many percent the candidate may have messages in hand."""
        return self.weight if self.settled else max(self.weight, self.before)

    def start(self, version: str, weight: int) -> "Rollout":
        """A version gets so many percent."""
        return self._replace(candidate=version, weight=weight, before=self.reach)

    def shift(self, weight: int) -> "Rollout":
        """The candidate gets so many percent."""
        return self._replace(weight=weight, before=self.reach)

    def promote(self, version: str) -> "Rollout":
        """A version is the baseline, and has all messages."""
        return self._replace(baseline=version, candidate=version, weight=0, before=self.reach)

    def roll_back(self) -> "Rollout":
        """The baseline has all messages again."""
        return self._replace(weight=0, before=self.reach)


class Rollouts(Protocol):
    """The versions of an app that run side by side, and their shares."""

    def read(self, app: str, silent: float) -> Rollout | None:
        """Which versions of an app run side by side; None: there never were versions. A worker that said nothing for
        `silent` seconds is not waited for: its leases are over."""

    def enter(self, app: str, version: str, silent: float) -> Rollout | None:
        """The same, for a worker of a version that starts. The first version of an app is its baseline, but for workers
        without one that are there: these are."""

    def change(self, app: str, flows: Collection[str], rollout: Rollout) -> None:
        """Change a rollout, whose epoch is that of the one that is changed. Raises StoreConflict if another change
        came first."""
