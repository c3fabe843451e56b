"""Rollouts: versions side by side, and how the messages move from one to the other."""

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
    """The candidate has so many percent of the messages."""

    version: str
    weight: int


class Promoted(NamedTuple):
    """A version is the baseline, and has all messages. The other one is drained."""

    version: str


class RolledBack(NamedTuple):
    """The baseline has all messages again, and so many that had died at the candidate."""

    baseline: str
    candidate: str
    sent: int


class Fleet:
    """The versions of one app, in a store."""

    def __init__(self, store: OperatedStore, app: str, silent: float) -> None:
        """`app` may be empty where only one app has versions. `silent`: seconds after which a worker that said nothing
        is not waited for. Raises ConfigError."""
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
        assert found is not None  # it was there, and nothing removes it
        return Rollout._make(found)

    def versions(self, rollout: Rollout) -> list[Version]:
        """Each version in this state of the rollout: its role, its share and its figures."""
        return versions(rollout, [one for one in self.store.ledger.workers() if one.app == self.app])

    def version(self, name: str) -> Version:
        """Raises ConfigError for one that nobody runs."""
        for one in self.versions(self.rollout):
            if one.name == name and one.ready:
                return one
        raise ConfigError(f"no worker of version {shown(name)} of app {self.app} is ready; flowkit status shows them")

    @property
    def flows(self) -> list[str]:
        return [one for one in self.store.subscribers.channels() if one.startswith(f"{self.app}.")]

    def change(self, rollout: Rollout) -> None:
        """Change the rollout that this one was made of. Raises StoreConflict if somebody else did so meanwhile."""
        self.store.rollouts.change(self.app, self.flows, rollout)

    def settle(self) -> Rollout:
        """Wait until all workers conform to the last change, and return what it came to. Raises FlowKitError when they
        do not."""
        end = time.monotonic() + SETTLE_SECONDS
        while not (rollout := self.rollout).settled:
            if time.monotonic() > end:
                mine = [one for one in self.store.ledger.workers() if one.app == self.app and one.state != "spare"]
                behind = [one for one in mine if one.epoch < rollout.epoch]
                raise FlowKitError(
                    f"after {SETTLE_SECONDS:g} s these workers still have messages in hand that are others' by now, or "
                    f"are frozen: {', '.join(f'{one.id} ({shown(one.version)})' for one in behind)}; the rollout goes "
                    "on as soon as they are done"
                )
            time.sleep(LOOK_SECONDS)
        return rollout

    def declare(self, transport: Transport) -> None:
        """Make the places of the candidate at the broker, if there is one."""
        transport.declare([flow + CANDIDATE for flow in self.flows])


def prepare(here: Fleet, transport: Transport, version: str) -> Rollout:
    """See that a version can be the candidate, and that it can be sent to. Returns the rollout as it is before. Raises
    ConfigError."""
    _may_start(here, here.rollout, version)
    here.version(version)
    rollout = here.settle()
    _may_start(here, rollout, version)
    here.declare(transport)
    return rollout


def start(here: Fleet, transport: Transport, version: str, weight: int) -> Shifted:
    """Let a version have so many percent of the messages. Blocks until no worker goes by the share before."""
    rollout = prepare(here, transport, version)
    here.change(rollout.start(version, weight))
    here.settle()
    return Shifted(version, weight)


def shift(here: Fleet, weight: int) -> Shifted:
    """Let the candidate have so many percent. Blocks until no worker goes by the share before."""
    _candidate(here, here.rollout)
    rollout = here.settle()
    name = _candidate(here, rollout)
    here.change(rollout.shift(weight))
    here.settle()
    return Shifted(name, weight)


def promote(here: Fleet, version: str | None) -> Promoted:
    """Let a version be the baseline: the candidate, or this one, which waits. Blocks until the other one is drained."""
    here.version(_candidate(here, here.rollout) if version is None else version)
    rollout = here.settle()
    here.change(rollout.promote(_candidate(here, rollout) if version is None else version))
    return finish_promotion(here)


def roll_back(here: Fleet) -> RolledBack:
    """Let the baseline have all messages again, also those that died at the candidate. What an earlier rollback could
    not finish is finished. Blocks until the candidate is drained."""
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
    """Wait until the new baseline has all messages."""
    return Promoted(here.settle().baseline)


def finish_rollback(here: Fleet, rollout: Rollout) -> RolledBack:
    """Wait until the baseline has all messages, and let it have those too that died at the candidate: what did so far
    at once, whoever starts the next rollout, and however long a handler hangs."""
    sent = _resurrect(here, rollout.candidate)
    here.settle()
    sent += _resurrect(here, rollout.candidate)
    return RolledBack(rollout.baseline, rollout.candidate, sent)


def shown(version: str) -> str:
    """A version's name for a terminal."""
    return plain(named(version))


def _resurrect(here: Fleet, version: str) -> int:
    """Send again what died at this version since its rollout began. Returns how many."""
    letters = here.store.dead_letters.of_version(here.app, version)
    return here.store.dead_letters.retry(letters) if letters else 0


def _may_start(here: Fleet, rollout: Rollout, version: str) -> None:
    """Raise ConfigError where a version cannot be the candidate."""
    if rollout.going_on:
        raise ConfigError(
            f"version {shown(rollout.candidate)} has {rollout.weight} % already; shift, promote or roll back first"
        )
    if not version:
        raise ConfigError("a candidate needs a name: start its instances with --version")
    if version == rollout.baseline:
        raise ConfigError(f"version {shown(version)} is the baseline of app {here.app}: it has all messages")


def _candidate(here: Fleet, rollout: Rollout) -> str:
    """The version that is rolled out. Raises ConfigError if none is."""
    if not rollout.going_on:
        raise ConfigError(f"no version of app {here.app} is rolled out now; flowkit rollout start VERSION --weight 5")
    return rollout.candidate
