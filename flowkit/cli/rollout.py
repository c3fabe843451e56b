"""`flowkit rollout`: versions side by side, and how the messages move from one to the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.plain import plain
from flowkit.config import Settings, open_store, open_transport
from flowkit.continuity.comparison import ENOUGH, Plan, Version, fault, versions
from flowkit.errors import ConfigError, FlowKitError, Unavailable
from flowkit.ports import CANDIDATE, Rollout

LOOK_SECONDS = 0.2
SETTLE_SECONDS = 60.0
STUCK_SECONDS = 30.0
"""A candidate whose share does not come into force for so long is rolled back."""


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
        """Change the rollout. Raises ConfigError if somebody else did so just now."""
        self.store.change(self.app, self.flows, change(self.rollout))

    def settle(self) -> None:
        """Wait until all workers conform to the last change. Raises FlowKitError when they do not."""
        end = time.monotonic() + SETTLE_SECONDS
        while not self.rollout.settled:
            if time.monotonic() > end:
                mine = [one for one in self.store.ledger.workers() if one.app == self.app and one.state != "spare"]
                behind = [one for one in mine if one.epoch < self.rollout.epoch]
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
        if not version:
            raise ConfigError("a candidate needs a name: start its instances with --version")
        if version == rollout.baseline:
            raise ConfigError(f"version {plain(version)} is the baseline of app {here.app}: it has all messages")
        here.version(version)
        here.settle()
        here.declare()
        here.change(lambda one: one.start(version, weight))
        if ramp is not None:
            return _climb(here, ramp, weight)
        here.settle()
        print(f"version {plain(version)} has {weight} % of the messages of app {here.app}")
        return 0


def shift(weight: int, app: str) -> None:
    """Let the candidate have so many percent."""
    with fleet(app) as here:
        _candidate(here)
        here.settle()
        here.change(lambda one: one.shift(weight))
        here.settle()
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
        ["version", "", "share", "workers", "messages lately", "failed", "99 % in"],
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


def _climb(here: Fleet, ramp: Ramp, weight: int) -> int:
    """Give the candidate more, step by step, each when the last one went well for long enough, and enough messages came
    to tell; promote it in the end, or roll it back as soon as it is worse."""
    plan = Plan(ramp.errors, duration.seconds(ramp.p99, "--p99"))
    every = duration.seconds(ramp.every, "--every")
    name = here.rollout.candidate
    for step in [weight, *(one for one in ramp.steps if one > weight)]:
        if step != weight:
            here.change(lambda one: one.shift(step))  # noqa: B023
        print(f"version {plain(name)} has {step} % of the messages of app {here.app}", flush=True)
        if why := _watch(here, plan, every):
            print(f"version {plain(name)}: {why}", flush=True)
            _roll_back(here)
            return 1
    _promote(here, name)
    return 0


def _watch(here: Fleet, plan: Plan, seconds: float) -> str:
    """Watch the candidate for so long, and until it handled enough to tell. Why it has to go back; empty if it may
    stay. Raises ConfigError when somebody else ended the rollout."""
    began, name = time.monotonic(), here.rollout.candidate
    while True:
        try:
            rollout, found = here.rollout, {one.role: one for one in here.versions}
        except Unavailable:
            time.sleep(LOOK_SECONDS)  # the store is away for everybody
            continue
        if not rollout.going_on or rollout.candidate != name:
            raise ConfigError(f"the rollout of {plain(name)} was ended by somebody else")
        watched = time.monotonic() - began
        if not rollout.settled:
            if watched > STUCK_SECONDS:
                return f"after {STUCK_SECONDS:g} s some workers have not come to its share: their handlers hang"
        elif why := fault(plan, found["baseline"], found["candidate"]):
            return why
        elif watched >= seconds and found["candidate"].figures.handled >= ENOUGH:
            return ""
        time.sleep(LOOK_SECONDS)


def _promote(here: Fleet, name: str) -> None:
    here.change(lambda one: one.promote(name))
    here.settle()
    print(f"version {plain(name)} is the baseline of app {here.app}; the other one is drained, and safe to stop")


def _roll_back(here: Fleet) -> None:
    rollout = here.rollout
    here.change(Rollout.roll_back)
    try:
        here.settle()
    finally:
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
