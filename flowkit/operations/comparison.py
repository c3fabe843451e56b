"""Comparison of an app's versions: role, share and figures of each, from the heartbeats of their workers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from flowkit.ports import Figures, Rollout

FRESH_SECONDS = 5.0
"""A worker without a heartbeat for this many seconds does not count."""
ENOUGH = 20
"""Messages below which a version's failures are not judged."""
MANY = 100
"""Messages below which a version's p99 is not judged."""


class Reported(Protocol):
    """A worker, as its last heartbeat reported it."""

    @property
    def version(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def figures(self) -> Figures: ...
    @property
    def started(self) -> float: ...
    @property
    def silent(self) -> float: ...


class Version(NamedTuple):
    """One version of an app."""

    name: str
    role: str
    """baseline; candidate; waiting (for its rollout); draining; drained (it can be stopped)."""
    share: int
    """Percent of the messages."""
    ready: int
    """Number of workers that are ready, or wait for their share."""
    figures: Figures
    """Sums over all of its workers; p99 is that of the slowest worker."""

    @property
    def failing(self) -> float:
        """Percent of the handled messages that failed."""
        return 100 * self.figures.failed / self.figures.handled if self.figures.handled else 0.0


class Plan(NamedTuple):
    """The limits beyond which a candidate is rolled back."""

    errors: float
    """Percentage points by which the candidate's failures may exceed the baseline's."""
    p99: float
    """Seconds within which 99 % of the candidate's messages have to finish, unless the baseline is no faster."""


def versions(rollout: Rollout, workers: Iterable[Reported]) -> list[Version]:
    """The versions that have workers, and the baseline and candidate in any case; the baseline first."""
    live = [one for one in workers if one.silent < FRESH_SECONDS and one.state != "spare"]
    names = {rollout.baseline, *(one.version for one in live), *([rollout.candidate] if rollout.going_on else [])}
    found = []
    for name in sorted(names, key=lambda name: (name != rollout.baseline, name)):
        mine = [one for one in live if one.version == name]
        figures = Figures(
            sum(one.figures.handled for one in mine),
            sum(one.figures.failed for one in mine),
            max((one.figures.p99 for one in mine), default=0.0),
        )
        ready = sum(one.state in ("ready", "waiting") for one in mine)
        found.append(Version(name, _role(name, rollout, mine), _share(name, rollout), ready, figures))
    return found


def _share(name: str, rollout: Rollout) -> int:
    if name == rollout.baseline:
        return 100 - rollout.weight
    return rollout.weight if name == rollout.candidate else 0


def _role(name: str, rollout: Rollout, workers: Sequence[Reported]) -> str:
    if name == rollout.baseline:
        return "baseline"
    if rollout.going_on and name == rollout.candidate:
        return "candidate"
    if any(one.epoch < rollout.epoch for one in workers):
        return "draining"
    was_there = rollout.candidate in (name, rollout.baseline) and any(one.started >= rollout.age for one in workers)
    return "drained" if was_there else "waiting"


def fault(plan: Plan, baseline: Version, candidate: Version) -> str:
    """The reason to roll a candidate back; empty while it keeps the plan."""
    if not candidate.ready:
        return "none of its workers is ready"
    if candidate.figures.handled < ENOUGH:
        return ""
    if candidate.figures.failed > 1 and candidate.failing > baseline.failing + plan.errors:
        return f"{candidate.failing:.1f} % of its messages fail, and {baseline.failing:.1f} % of the baseline's"
    if candidate.figures.handled >= MANY and candidate.figures.p99 > max(plan.p99, baseline.figures.p99):
        return (
            f"99 % of its messages take up to {candidate.figures.p99 * 1e3:.0f} ms, and {plan.p99 * 1e3:.0f} ms are "
            f"permitted; the baseline takes {baseline.figures.p99 * 1e3:.0f} ms"
        )
    return ""
