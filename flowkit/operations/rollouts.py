"""Rollouts: two versions side by side, and the percent of the messages that the candidate gets."""

import time
from typing import NamedTuple

from flowkit.engine.versions import named
from flowkit.errors import ConfigError, FlowKitError
from flowkit.operations.comparison import Version, versions
from flowkit.operations.store import OperatedStore
from flowkit.plain import plain
from flowkit.ports import CANDIDATE, Rollout, Transport

LOOK_SECONDS = 0.2
SETTLE_SECONDS = 60.0


class Shifted(NamedTuple):
    """The candidate has `weight` percent of the messages."""

    version: str
    weight: int


class Promoted(NamedTuple):
    """`version` is the baseline and gets all messages. The other version is drained."""

    version: str


class RolledBack(NamedTuple):
    """The baseline gets all messages again. `sent`: dead letters of the candidate that were sent again to it."""

    baseline: str
    candidate: str
    sent: int


class Fleet:
    """The versions of one app, in a store."""

    def __init__(self, store: OperatedStore, app: str, silent: float) -> None:
        """`app` may be empty if only one app has versions. `silent`: seconds without a heartbeat after which a worker
        is not waited for. Blocks. Raises ConfigError."""
        self.store = store
        self._silent = silent
        apps = sorted({flow.split(".", 1)[0] for flow in store.subscribers.channels()})
        found = {one: store.rollouts.read(one, silent) for one in apps}
        known = [one for one, rollout in found.items() if rollout is not None and app in ("", one)]
        if len(known) != 1:
            raise ConfigError(
                f"apps {', '.join(map(plain, known))} have versions; say which by --app"
                if known
                else f"no {f'app {plain(app)}' if app else 'app'} has versions here; start it with --version"
            )
        (self.app,) = known

    @property
    def rollout(self) -> Rollout:
        found = self.store.rollouts.read(self.app, self._silent)
        assert found is not None  # a rollout is never removed
        return Rollout._make(found)

    def versions(self, rollout: Rollout) -> list[Version]:
        """Each version in this state of the rollout: its role, its share and its figures."""
        return versions(rollout, [one for one in self.store.ledger.workers() if one.app == self.app])

    def version(self, name: str) -> Version:
        """The version of this name. Blocks. Raises ConfigError if none of its workers is ready."""
        for one in self.versions(self.rollout):
            if one.name == name and one.ready:
                return one
        raise ConfigError(f"no worker of version {shown(name)} of app {self.app} is ready; flowkit status shows them")

    @property
    def flows(self) -> list[str]:
        return [one for one in self.store.subscribers.channels() if one.startswith(f"{self.app}.")]

    def change(self, rollout: Rollout) -> None:
        """Replace the rollout that `rollout` was made from. Blocks. Raises StoreConflict if it was changed since."""
        self.store.rollouts.change(self.app, self.flows, rollout)

    def settle(self) -> Rollout:
        """Wait until all workers conform to the last change, for SETTLE_SECONDS at most. Returns the rollout. Raises
        FlowKitError if some do not."""
        end = time.monotonic() + SETTLE_SECONDS
        while not (rollout := self.rollout).settled:
            if time.monotonic() > end:
                mine = [one for one in self.store.ledger.workers() if one.app == self.app and one.state != "spare"]
                behind = [one for one in mine if one.epoch < rollout.epoch]
                raise FlowKitError(
                    f"after {SETTLE_SECONDS:g} s these workers still have messages in flight that another version has "
                    f"to handle, or are frozen: {', '.join(f'{one.id} ({shown(one.version)})' for one in behind)}; the "
                    "rollout continues as soon as they finish"
                )
            time.sleep(LOOK_SECONDS)
        return rollout

    def declare(self, transport: Transport) -> None:
        """Declare the candidate's queues at the broker, if there is one. Blocks."""
        transport.declare([flow + CANDIDATE for flow in self.flows])


def prepare(here: Fleet, transport: Transport, version: str) -> Rollout:
    """Check that a version can be the candidate, and declare its queues. Returns the rollout before the change. Blocks.
    Raises ConfigError."""
    _may_start(here, here.rollout, version)
    here.version(version)
    rollout = here.settle()
    _may_start(here, rollout, version)
    here.declare(transport)
    return rollout


def start(here: Fleet, transport: Transport, version: str, weight: int) -> Shifted:
    """Make a version the candidate, with `weight` percent. Blocks until all workers conform. Raises ConfigError."""
    rollout = prepare(here, transport, version)
    here.change(rollout.start(version, weight))
    here.settle()
    return Shifted(version, weight)


def shift(here: Fleet, weight: int) -> Shifted:
    """Change the candidate's weight, in percent. Blocks until all workers conform. Raises ConfigError."""
    _candidate(here, here.rollout)
    rollout = here.settle()
    name = _candidate(here, rollout)
    here.change(rollout.shift(weight))
    here.settle()
    return Shifted(name, weight)


def promote(here: Fleet, version: str | None) -> Promoted:
    """Make a version the baseline: `version`, which waits, or the candidate if None. Blocks until the other version is
    drained. Raises ConfigError."""
    here.version(_candidate(here, here.rollout) if version is None else version)
    rollout = here.settle()
    here.change(rollout.promote(_candidate(here, rollout) if version is None else version))
    return finish_promotion(here)


def roll_back(here: Fleet) -> RolledBack:
    """Give all messages to the baseline again, and retry the candidate's dead letters there. Finishes an earlier
    rollback that was interrupted. Blocks until the candidate is drained. Raises ConfigError."""
    rollout = here.rollout
    if rollout.candidate and rollout.candidate == rollout.baseline:
        others = [f"'{named(one.name)}'" for one in here.versions(rollout) if one.role != "baseline" and one.ready]
        raise ConfigError(
            f"version {shown(rollout.baseline)} is the baseline of app {here.app} now; to go back, promote "
            f"the version before it: flowkit rollout promote {plain(' or '.join(others)) or 'VERSION'}"
        )
    if rollout.going_on or not rollout.candidate:
        _candidate(here, rollout)
        here.change(rollout.roll_back())
    return finish_rollback(here, rollout)


def finish_promotion(here: Fleet) -> Promoted:
    """Wait until the new baseline has all messages. Blocks."""
    return Promoted(here.settle().baseline)


def finish_rollback(here: Fleet, rollout: Rollout) -> RolledBack:
    """Wait until the baseline has all messages, and retry the candidate's dead letters there. Blocks. Those that are
    there already are retried before the wait, because a handler may hang, or another rollout may start."""
    sent = _resurrect(here, rollout.candidate)
    here.settle()
    sent += _resurrect(here, rollout.candidate)
    return RolledBack(rollout.baseline, rollout.candidate, sent)


def shown(version: str) -> str:
    """A version's name for a terminal."""
    return plain(named(version))


def _resurrect(here: Fleet, version: str) -> int:
    """Retry the dead letters of this version since its rollout began. Returns their number."""
    letters = here.store.dead_letters.of_version(here.app, version)
    return here.store.dead_letters.retry(letters) if letters else 0


def _may_start(here: Fleet, rollout: Rollout, version: str) -> None:
    """Raise ConfigError if a version cannot be the candidate."""
    if rollout.going_on:
        raise ConfigError(
            f"version {shown(rollout.candidate)} has {rollout.weight} % already; shift, promote or roll back first"
        )
    if not version:
        raise ConfigError("a candidate needs a name: start its instances with --version")
    if version == rollout.baseline:
        raise ConfigError(f"version {shown(version)} is the baseline of app {here.app}: it has all messages")


def _candidate(here: Fleet, rollout: Rollout) -> str:
    """The name of the candidate. Raises ConfigError if no rollout is in progress."""
    if not rollout.going_on:
        raise ConfigError(f"no version of app {here.app} is rolled out now; flowkit rollout start VERSION --weight 5")
    return rollout.candidate
