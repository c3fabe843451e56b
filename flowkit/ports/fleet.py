"""The parts of the store for the fleet: workers, directions, groups, rollouts, uptime."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol


class WorkerInfo(NamedTuple):
    """The description of a worker in the store."""

    id: str
    app: str
    host: str
    pid: int
    group: str = ""
    """The group of instances that are active, or on standby, together; empty without standby."""
    site: str = ""
    version: str = ""


class Figures(NamedTuple):
    """Figures of a worker since the last change of its app's rollout, of at most the last minute."""

    handled: int = 0
    failed: int = 0
    """Of the handled messages, those whose attempt failed or that this version could not read."""
    p99: float = 0.0
    """The 99th percentile, in seconds, of the time from receiving a message to the commit of its outcome."""


class Fleet(Protocol):
    """The workers of all apps. Every call blocks."""

    def join(self, worker: WorkerInfo, epoch: int = 0) -> None:
        """Record a worker, and the epoch of the rollout that it conforms to. Hold its liveness lock while this process
        lives."""

    def leave(self, worker: str) -> None:
        """Remove a worker that shuts down cleanly."""

    def beat(self, worker: str, state: str, epoch: int = 0, figures: Figures | None = None) -> None:
        """Record the heartbeat of a worker: its state, the epoch that it conforms to, and its figures. Free the leases
        of dead workers."""

    def ready(self, app: str) -> int:
        """Return how many workers of an app are ready, by their heartbeats."""

    def is_staffed(self, app: str) -> bool:
        """Return whether a worker of an app lives, ready or not, by its lock or its heartbeats."""

    def members(self) -> set[str]:
        """Return the ids of the recorded workers of all apps."""


PAUSED, DRAINED, WORKERS, LANES = DIRECTIONS = ("paused", "drained", "workers", "lanes")
"""The kinds of directions. Paused flows, or apps, begin no message. Drained ones accept nothing over HTTP. `workers` is
the number of worker processes of each instance of an app, `lanes` the number of lanes of a flow in each worker."""
NORMAL, MINIMUM = "normal", "minimum"
"""The numbers of workers that an app needs for normal and for minimum service. With fewer, flows rest."""


class Directions(Protocol):
    """The settings that operators change while flows and apps run. Every call blocks."""

    def set(self, what: str, names: Collection[str], value: int | None) -> None:
        """Set `what`, one of the DIRECTIONS, for these flows or apps in the whole fleet. None removes the setting."""

    def read(self) -> Mapping[tuple[str, str], int]:
        """Return the settings: (what, name) -> value."""


class Uptime(Protocol):
    """The periods in which apps gave at least their minimum service. Every call blocks."""

    def note(self, app: str) -> None:
        """Record that an app gives at least its minimum service now."""

    def read(self, app: str, seconds: float) -> Sequence[tuple[float, float]]:
        """Return the periods as (begin, end), in seconds before now, in order: those that began within the last
        `seconds`, and the one before them."""


class Standing(NamedTuple):
    """The active group of an app, the token of its lease, and the seconds until the lease expires."""

    group: str
    token: int
    seconds: float


class Fence(NamedTuple):
    """The lease under which a process may commit. Once its group is active under this token no more, commits fail."""

    app: str
    group: str
    token: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Name, holder and token of the lease in the store."""
        return f"active:{self.app}", self.group, self.token


class Groups(Protocol):
    """The active group of instances of each app. Every call blocks."""

    def stand(self, app: str, group: str, seconds: float, ready: bool) -> Standing | None:
        """Return the active group of the app, after this group has renewed or acquired the lease; None if no group was
        ever active.

        The active group renews its lease for `seconds`. A `ready` group acquires a lease that has expired, and frees
        the messages that other groups' workers held. It cannot while a worker without a group has sent a heartbeat in
        the last `seconds`. Such workers form the group "", whose lease only blocks others, and expires when the
        heartbeats stop.
        """

    def step_down(self, app: str, group: str, silent: float) -> None:
        """End the lease of this group, unless one of its workers has sent a heartbeat in the last `silent` seconds."""

    def standing(self, app: str) -> Standing | None:
        """Return the active group of the app, and change nothing; None if no group was ever active."""


class Rollout(NamedTuple):
    """The versions of an app that run side by side.

    The candidate handles `weight` percent of the messages, by the hash of their keys, and the baseline all others.
    While the rollout is not `settled`, some workers still conform to the weight `before`, or finish messages by it.
    """

    baseline: str
    candidate: str = ""
    """The version of this rollout, or of the last one; empty if there was none."""
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
        """Percent of the messages of which the candidate may have some in flight."""
        return self.weight if self.settled else max(self.weight, self.before)

    def start(self, version: str, weight: int) -> "Rollout":
        """Return the rollout in which `version` is the candidate, with `weight` percent."""
        return self._replace(candidate=version, weight=weight, before=self.reach)

    def shift(self, weight: int) -> "Rollout":
        """Return the rollout in which the candidate has `weight` percent."""
        return self._replace(weight=weight, before=self.reach)

    def promote(self, version: str) -> "Rollout":
        """Return the rollout in which `version` is the baseline, and handles all messages."""
        return self._replace(baseline=version, candidate=version, weight=0, before=self.reach)

    def roll_back(self) -> "Rollout":
        """Return the rollout in which the baseline handles all messages again."""
        return self._replace(weight=0, before=self.reach)


class Rollouts(Protocol):
    """The rollouts of all apps. Every call blocks."""

    def read(self, app: str, silent: float) -> Rollout | None:
        """Return the rollout of an app; None if the app never had versions. A worker without a heartbeat for `silent`
        seconds does not count: its leases have expired."""

    def enter(self, app: str, version: str, silent: float) -> Rollout | None:
        """Return the rollout for a starting worker of `version`. The first version of an app becomes its baseline; if
        workers without a version run, they are the baseline instead."""

    def change(self, app: str, flows: Collection[str], rollout: Rollout) -> None:
        """Replace the rollout of an app. `rollout.epoch` is the epoch of the replaced one. Raises StoreConflict if
        another change came first."""
