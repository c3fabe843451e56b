"""`flowkit rollout`: versions side by side, and how the messages move from one to the other."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.plain import plain
from flowkit.config import Settings, open_store, open_transport
from flowkit.continuity.comparison import ENOUGH, Plan, Version, fault, versions
from flowkit.engine.versions import NONE, named
from flowkit.errors import CommitUnknown, ConfigError, FlowKitError, StoreConflict, Unavailable
from flowkit.ports import CANDIDATE, Rollout

LOOK_SECONDS = 0.2
SETTLE_SECONDS = 60.0
RECOVERY_SECONDS = 10.0
"""After the store was away workers take so long, with their backoff, to say that they are there."""
STUCK_SECONDS = 30.0
"""A candidate whose share does not come into force for so long is rolled back."""
T = TypeVar("T")


class Ramp(NamedTuple):
    """How a candidate gets ever more by itself."""

    steps: Sequence[int]
    every: str
    errors: float
    p99: str


def percents(steps: str) -> list[int]:
    """The percents of a ramp. Raises ConfigError."""
    try:
        found = [int(one) for one in steps.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one <= 100 for one in found) or found != sorted(found):
        raise ConfigError(f"--steps {steps}: write rising percents, such as 25,50,100")
    return found


class Fleet:
    """The versions of one app, in a store."""

    def __init__(self, app: str) -> None:
        """`app` may be left out where only one app has versions. Raises ConfigError."""
        self.settings = Settings.read()
        self.store: Any = open_store(self.settings, create=False)
        found = {one: self.store.rollouts.read(one, self.settings.lease) for one in _apps(self.store)}
        known = [one for one, rollout in found.items() if rollout is not None and app in ("", one)]
        if len(known) != 1:
            self.store.close()
            raise ConfigError(
                f"apps {', '.join(map(plain, known))} have versions; say which by --app"
                if known
                else f"no {f'app {plain(app)}' if app else 'app'} has versions here; start it with --version"
            )
        (self.app,) = known

    @property
    def rollout(self) -> Rollout:
        found = self.store.rollouts.read(self.app, self.settings.lease)
        assert found is not None  # it was there, and nothing removes it
        return Rollout._make(found)

    def versions(self, rollout: Rollout) -> list[Version]:
        """What each version is in this state of the rollout, and how it does."""
        return versions(rollout, [one for one in self.store.ledger.workers() if one.app == self.app])

    def version(self, name: str) -> Version:
        """Raises ConfigError for one that nobody runs."""
        for one in self.versions(self.rollout):
            if one.name == name and one.ready:
                return one
        raise ConfigError(f"no worker of version {_shown(name)} of app {self.app} is ready; flowkit status shows them")

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
                    f"are frozen: {', '.join(f'{one.id} ({_shown(one.version)})' for one in behind)}; the rollout goes "
                    "on as soon as they are done"
                )
            time.sleep(LOOK_SECONDS)
        return rollout

    def declare(self) -> None:
        """Make the places of the candidate at the broker, if there is one."""
        transport = open_transport(self.settings, self.store)
        try:
            transport.declare([flow + CANDIDATE for flow in self.flows])
        finally:
            transport.close()


@contextmanager
def fleet(app: str) -> Iterator[Fleet]:
    opened = Fleet(app)
    try:
        yield opened
    finally:
        opened.store.close()


def start(version: str, weight: int, app: str, ramp: Ramp | None) -> int:
    """Let a version have so many percent of the messages. With a ramp stay, and give it more; returns 1 if it had to go
    back."""
    with fleet(app) as here:
        _may_start(here, here.rollout, version)
        here.version(version)
        rollout = here.settle()
        _may_start(here, rollout, version)
        climb = Climb(here, ramp, version) if ramp is not None else None
        here.declare()
        if climb is not None:
            with suppress(CommitUnknown):  # the next look shows it
                here.change(rollout.start(version, weight))
            return _climb(climb)
        here.change(rollout.start(version, weight))
        here.settle()
        print(f"version {_shown(version)} has {weight} % of the messages of app {here.app}")
        return 0


def shift(weight: int, app: str) -> None:
    """Let the candidate have so many percent."""
    with fleet(app) as here:
        _candidate(here, here.rollout)
        rollout = here.settle()
        name = _candidate(here, rollout)
        here.change(rollout.shift(weight))
        here.settle()
        print(f"version {_shown(name)} has {weight} % of the messages of app {here.app}")


def promote(version: str | None, app: str) -> None:
    """Let a version be the baseline: the candidate, or this one, which waits."""
    if version == "":
        raise ConfigError(f"which version? '{NONE}' is the one of instances without a name")
    wanted = "" if version == NONE else version
    with fleet(app) as here:
        here.version(_candidate(here, here.rollout) if wanted is None else wanted)
        rollout = here.settle()
        here.change(rollout.promote(_candidate(here, rollout) if wanted is None else wanted))
        _tell_promoted(here)


def rollback(app: str) -> None:
    """Let the baseline have all messages again, also those that died at the candidate. What an earlier rollback could
    not finish is finished."""
    with fleet(app) as here:
        rollout = here.rollout
        if rollout.candidate and rollout.candidate == rollout.baseline:
            others = [f"'{named(one.name)}'" for one in here.versions(rollout) if one.role != "baseline" and one.ready]
            raise ConfigError(
                f"version {_shown(rollout.baseline)} is the baseline of app {here.app} now; to go back, promote "
                f"the version before it: flowkit rollout promote {plain(' or '.join(others)) or 'VERSION'}"
            )
        if rollout.going_on or not rollout.candidate:
            _candidate(here, rollout)
            here.change(rollout.roll_back())
        _finish_rollback(here, rollout)


def status(app: str, json: bool) -> None:
    """The versions, and how they do."""
    with fleet(app) as here:
        rollout = here.rollout
        found = here.versions(rollout)
    if json:
        told = [{**one._asdict(), "figures": one.figures._asdict()} for one in found]
        show.as_json({"app": here.app, "settled": rollout.settled, "versions": told})
        return
    show.table(
        f"App {here.app}",
        ["version", "", "share", "workers", "messages lately", "failed", "99 % in hand for"],
        [
            (
                named(one.name),
                one.role,
                f"{one.share} %",
                one.ready,
                *_figures(one),
            )
            for one in found
        ],
    )
    for one in found:
        if one.role == "drained":
            print(f"version {_shown(one.name)} has nothing left: it is safe to stop it")
    if not rollout.settled:
        print("some workers still finish what they had begun before the last change")


class Climb:
    """A candidate that gets more by itself, step by step, each when the last one went well for long enough, and enough
    messages came to tell; it is promoted in the end, or rolled back as soon as it is worse. How far it is, is in the
    store: what was done with an unknown outcome is seen at the next look."""

    def __init__(self, here: Fleet, ramp: Ramp, name: str) -> None:
        """`name`: the candidate, which has its first share."""
        self._here = here
        self._name = name
        self._steps = ramp.steps
        self._plan = Plan(ramp.errors, duration.seconds(ramp.p99, "--p99"))
        self._every = duration.seconds(ramp.every, "--every")
        self._away = float("-inf")
        """When the store was away last, by the monotonic clock."""
        self._told = 0
        self._waits = False
        self._fault = ""
        """Why it has to go back."""

    def look(self) -> bool:
        """Do what is next. Whether the rollout goes on. Raises Unavailable."""
        here, name = self._here, self._name
        try:
            rollout = here.rollout
            found = {one.role: one for one in here.versions(rollout)}
        except Unavailable:
            self._away = time.monotonic()
            raise
        if not rollout.going_on or rollout.candidate != name:
            return False
        if rollout.weight != self._told:
            self._told = rollout.weight
            print(f"version {_shown(name)} has {rollout.weight} % of the messages of app {here.app}", flush=True)
        calm = time.monotonic() - self._away
        if calm < RECOVERY_SECONDS:
            return True
        if not self._fault:
            self._fault = self._see(found, None if rollout.settled else min(rollout.age, calm))
            if self._fault:
                print(f"version {_shown(name)}: {self._fault}", flush=True)
        if self._fault:
            here.change(rollout.roll_back())
        elif rollout.settled and rollout.age >= self._every and self._has_enough(found["candidate"].figures.handled):
            step = next((one for one in self._steps if one > rollout.weight), None)
            here.change(rollout.promote(name) if step is None else rollout.shift(step))
        return True

    def end(self) -> int:
        """Finish what the last look saw, and return the exit code. Raises ConfigError when somebody else ended it."""
        if self._here.rollout.baseline == self._name:
            _tell_promoted(self._here)
            return 0
        if not self._fault:
            raise ConfigError(f"the rollout of {_shown(self._name)} does not go on: it was ended by somebody else")
        _finish_rollback(self._here, self._here.rollout._replace(candidate=self._name))
        return 1

    def _has_enough(self, handled: int) -> bool:
        """Whether so many messages tell something; says what it waits for."""
        if handled < ENOUGH and not self._waits:
            print(f"version {_shown(self._name)} waits for {ENOUGH} messages; {handled} came so far", flush=True)
        self._waits = handled < ENOUGH
        return not self._waits

    def _see(self, found: Mapping[str, Version], unsettled: float | None) -> str:
        """Why the candidate has to go back; empty if it may stay. `unsettled`: for how many seconds workers could have
        come to its share, and have not."""
        if unsettled is None:
            return fault(self._plan, found["baseline"], found["candidate"])
        if unsettled > STUCK_SECONDS:
            return f"after {STUCK_SECONDS:g} s some workers have not come to its share: their handlers hang"
        return ""


def _climb(climb: Climb) -> int:
    """Look until the rollout is over. Returns the exit code."""
    try:
        while _patiently(climb.look):
            time.sleep(LOOK_SECONDS)
        return _patiently(climb.end)
    except KeyboardInterrupt:
        print("nobody watches the rollout any more, and it stays as it is; see flowkit rollout status")
        raise


def _patiently(ask: Callable[[], T]) -> T:
    """What it returns. It is asked again while the store is away, for everybody, and if somebody else was quicker."""
    while True:
        try:
            return ask()
        except (Unavailable, StoreConflict):
            time.sleep(LOOK_SECONDS)


def _figures(one: Version) -> tuple[str, str, str]:
    """How a version did, as far as is known: what is handled is counted in a rollout, some seconds after a change."""
    if not one.figures.handled:
        return "–", "–", "–"
    return f"{one.figures.handled}", f"{one.failing:.1f} %", f"{one.figures.p99 * 1e3:.0f} ms"


def _tell_promoted(here: Fleet) -> None:
    name = here.settle().baseline
    print(f"version {_shown(name)} is the baseline of app {here.app}; the other one is drained, and safe to stop")


def _finish_rollback(here: Fleet, rollout: Rollout) -> None:
    """Wait until the baseline has all messages, and let it have those too that died at the candidate: what did so far
    at once, whoever starts the next rollout, and however long a handler hangs."""
    sent = _resurrect(here, rollout.candidate)
    here.settle()
    sent += _resurrect(here, rollout.candidate)
    print(
        f"version {_shown(rollout.baseline)} has all messages of app {here.app} again"
        f"{f', and {sent} that had died at {_shown(rollout.candidate)}' if sent else ''}"
    )


def _resurrect(here: Fleet, version: str) -> int:
    """Send again what died at this version since its rollout began. Returns how many."""
    letters = here.store.dead_letters.of_version(here.app, version)
    return int(here.store.dead_letters.retry(letters)) if letters else 0


def _may_start(here: Fleet, rollout: Rollout, version: str) -> None:
    """Raise ConfigError where a version cannot be the candidate."""
    if rollout.going_on:
        raise ConfigError(
            f"version {_shown(rollout.candidate)} has {rollout.weight} % already; shift, promote or roll back first"
        )
    if not version:
        raise ConfigError("a candidate needs a name: start its instances with --version")
    if version == rollout.baseline:
        raise ConfigError(f"version {_shown(version)} is the baseline of app {here.app}: it has all messages")


def _candidate(here: Fleet, rollout: Rollout) -> str:
    """The version that is rolled out. Raises ConfigError if none is."""
    if not rollout.going_on:
        raise ConfigError(f"no version of app {here.app} is rolled out now; flowkit rollout start VERSION --weight 5")
    return rollout.candidate


def _shown(version: str) -> str:
    """A version's name for a terminal."""
    return plain(named(version))


def _apps(store: Any) -> list[str]:
    """The apps that a store knows."""
    return sorted({flow.split(".", 1)[0] for flow in store.subscribers.channels()})
