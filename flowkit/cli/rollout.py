"""`flowkit rollout`: versions side by side, and how the messages move from one to the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.plain import plain
from flowkit.config import Settings, open_store, open_transport
from flowkit.continuity.comparison import Plan, Version, fault, versions
from flowkit.errors import ConfigError, FlowKitError
from flowkit.ports import CANDIDATE, Rollout

LOOK_SECONDS = 0.2
SETTLE_SECONDS = 60.0


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
        found = {one: self.store.rollout(one, self.settings.lease) for one in _apps(self.store)}
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
        found = self.store.rollout(self.app, self.settings.lease)
        assert found is not None  # it was there, and nothing removes it
        return Rollout._make(found)

    @property
    def versions(self) -> list[Version]:
        return versions(self.rollout, [one for one in self.store.ledger.workers() if one.app == self.app])

    def version(self, name: str) -> Version:
        """Raises ConfigError for one that nobody runs."""
        for one in self.versions:
            if one.name == name and one.ready:
                return one
        raise ConfigError(f"no worker of version {plain(name)} of app {self.app} is ready; flowkit status shows them")

    @property
    def flows(self) -> list[str]:
        return [one for one in self.store.subscriptions() if one.startswith(f"{self.app}.")]

    def change(self, change: Callable[[Rollout], Rollout]) -> None:
        """Change the rollout, and wait until all workers conform to it. Raises FlowKitError when they do not."""
        self.store.change(self.app, self.flows, change(self.rollout))
        self.settle()

    def settle(self) -> None:
        end = time.monotonic() + SETTLE_SECONDS
        while not self.rollout.settled:
            if time.monotonic() > end:
                behind = [one for one in self.store.ledger.workers() if one.epoch < self.rollout.epoch]
                raise FlowKitError(
                    f"after {SETTLE_SECONDS:g} s these workers still have messages in hand that are others' by now, or "
                    f"are frozen: {', '.join(f'{one.id} ({plain(one.version)})' for one in behind)}; the rollout goes "
                    "on as soon as they are done"
                )
            time.sleep(LOOK_SECONDS)

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
        rollout = here.rollout
        if rollout.going_on:
            raise ConfigError(
                f"version {plain(rollout.candidate)} has {rollout.weight} % already; shift, promote or roll back first"
            )
        if version == rollout.baseline:
            raise ConfigError(f"version {plain(version)} is the baseline of app {here.app}: it has all messages")
        here.version(version)
        here.settle()
        here.declare()
        here.change(lambda one: one._replace(candidate=version, weight=weight, before=0))
        print(f"version {plain(version)} has {weight} % of the messages of app {here.app}")
        return _climb(here, ramp) if ramp is not None else 0


def shift(weight: int, app: str) -> None:
    """Let the candidate have so many percent."""
    with fleet(app) as here:
        _candidate(here)
        here.settle()
        here.change(lambda one: one._replace(weight=weight, before=one.weight))
        print(f"version {plain(here.rollout.candidate)} has {weight} % of the messages of app {here.app}")


def promote(version: str, app: str) -> None:
    """Let a version be the baseline: the candidate, or one that waits."""
    with fleet(app) as here:
        name = version or _candidate(here)
        here.version(name)
        here.settle()
        _promote(here, name)


def rollback(app: str) -> None:
    """Let the baseline have all messages again, also those that died at the candidate."""
    with fleet(app) as here:
        _candidate(here)
        _roll_back(here)


def status(app: str, json: bool) -> None:
    """The versions, and how they do."""
    with fleet(app) as here:
        rollout, found = here.rollout, here.versions
    if json:
        told = [{**one._asdict(), "figures": one.figures._asdict()} for one in found]
        show.as_json({"app": here.app, "settled": rollout.settled, "versions": told})
        return
    show.table(
        f"App {here.app}",
        ["version", "", "share", "workers", "messages in 5 s", "failed", "99 % in"],
        [
            (
                one.name or "(none)",
                one.role,
                f"{one.share} %",
                one.ready,
                one.figures.handled,
                f"{one.failing:.1f} %",
                f"{one.figures.p99 * 1e3:.0f} ms",
            )
            for one in found
        ],
    )
    for one in found:
        if one.role == "drained":
            print(f"version {plain(one.name)} has nothing left: it is safe to stop it")
    if not rollout.settled:
        print("some workers still finish what they had begun before the last change")


def _climb(here: Fleet, ramp: Ramp) -> int:
    """Give the candidate more, step by step; promote it in the end, or roll it back as soon as it is worse."""
    plan = Plan(ramp.errors, duration.seconds(ramp.p99, "--p99"))
    every = duration.seconds(ramp.every, "--every")
    for weight in [*ramp.steps, None]:
        end = time.monotonic() + every
        while time.monotonic() < end:
            found = {one.role: one for one in here.versions}
            if why := fault(plan, found["baseline"], found["candidate"]):
                print(f"version {plain(found['candidate'].name)}: {why}")
                _roll_back(here)
                return 1
            time.sleep(LOOK_SECONDS)
        if weight is not None:
            here.change(lambda one: one._replace(weight=weight, before=one.weight))  # noqa: B023
            print(f"version {plain(here.rollout.candidate)} has {weight} %")
    _promote(here, here.rollout.candidate)
    return 0


def _promote(here: Fleet, name: str) -> None:
    here.change(lambda one: Rollout(name, name, 0, one.weight, one.epoch))
    print(f"version {plain(name)} is the baseline of app {here.app}; the other one is drained, and safe to stop")


def _roll_back(here: Fleet) -> None:
    rollout = here.rollout
    before = max(rollout.weight, rollout.before)
    here.change(lambda one: one._replace(weight=0, before=before))
    letters = here.store.dead_letters.of_version(here.app, rollout.candidate)
    sent = here.store.dead_letters.retry(letters) if letters else 0
    print(
        f"version {plain(rollout.baseline)} has all messages of app {here.app} again"
        f"{f', and {sent} that had died at {plain(rollout.candidate)}' if sent else ''}"
    )


def _candidate(here: Fleet) -> str:
    """The version that is rolled out now. Raises ConfigError if none is."""
    if not here.rollout.going_on:
        raise ConfigError(f"no version of app {here.app} is rolled out now; flowkit rollout start VERSION --weight 5")
    return here.rollout.candidate


def _apps(store: Any) -> list[str]:
    """The apps that a store knows."""
    return sorted({flow.split(".", 1)[0] for flow in store.subscriptions()})
