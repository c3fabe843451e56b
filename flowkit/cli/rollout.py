"""`flowkit rollout`: versions side by side, and how the messages move from one to the other."""

from collections.abc import Iterator
from contextlib import contextmanager

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.opened import opened_store, unchecked_services
from flowkit.engine.versions import NONE, named
from flowkit.errors import ConfigError
from flowkit.operations import rollouts
from flowkit.operations.comparison import ENOUGH, Plan, Version
from flowkit.operations.ramp import Event, Faulty, Ramp, Scarce, climb
from flowkit.operations.rollouts import Fleet, Promoted, RolledBack, Shifted, shown
from flowkit.operations.store import operated
from flowkit.settings import Settings


def ramp(steps: str, every: str, errors: float, p99: str) -> Ramp:
    """Parse how a candidate gets ever more. Raises ConfigError, or DefinitionError."""
    return Ramp(_percents(steps), duration.seconds(every, "--every"), Plan(errors, duration.seconds(p99, "--p99")))


def _percents(steps: str) -> list[int]:
    """The percents of a ramp. Raises ConfigError."""
    try:
        found = [int(one) for one in steps.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one <= 100 for one in found) or found != sorted(found):
        raise ConfigError(f"--steps {steps}: write rising percents, such as 25,50,100")
    return found


@contextmanager
def fleet(app: str) -> Iterator[Fleet]:
    """The versions of an app. Raises ConfigError."""
    settings = Settings.read()
    with opened_store(settings) as store:
        yield Fleet(store, app, settings.lease)


def start(version: str, weight: int, app: str, ramp: Ramp | None) -> int:
    """Let a version have so many percent of the messages. With a ramp stay, and give it more; returns 1 if it had to go
    back."""
    with unchecked_services() as services:
        here = Fleet(operated(services.store), app, services.settings.lease)
        if ramp is None:
            _tell(here, rollouts.start(here, services.transport, version, weight))
            return 0
        return _watch(here, climb(here, services.transport, version, weight, ramp))


def _watch(here: Fleet, events: Iterator[Event]) -> int:
    """Tell what happens until the rollout is over. Returns the exit code."""
    event: Event | None = None
    try:
        for event in events:
            _tell(here, event)
    except KeyboardInterrupt:
        print("nobody watches the rollout any more, and it stays as it is; see flowkit rollout status")
        raise
    return 1 if isinstance(event, RolledBack) else 0


def shift(weight: int, app: str) -> None:
    """Let the candidate have so many percent."""
    with fleet(app) as here:
        _tell(here, rollouts.shift(here, weight))


def promote(version: str | None, app: str) -> None:
    """Let a version be the baseline: the candidate, or this one, which waits."""
    if version == "":
        raise ConfigError(f"which version? '{NONE}' is the one of instances without a name")
    with fleet(app) as here:
        _tell(here, rollouts.promote(here, "" if version == NONE else version))


def rollback(app: str) -> None:
    """Let the baseline have all messages again, also those that died at the candidate. What an earlier rollback could
    not finish is finished."""
    with fleet(app) as here:
        _tell(here, rollouts.roll_back(here))


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
            print(f"version {shown(one.name)} has nothing left: it is safe to stop it")
    if not rollout.settled:
        print("some workers still finish what they had begun before the last change")


def _figures(one: Version) -> tuple[str, str, str]:
    """The figures of a version, where there are any: a rollout counts them from some seconds after a change."""
    if not one.figures.handled:
        return "–", "–", "–"
    return f"{one.figures.handled}", f"{one.failing:.1f} %", f"{one.figures.p99 * 1e3:.0f} ms"


def _tell(here: Fleet, event: Event) -> None:
    """Print what happened, at once: somebody may watch a pipe."""
    print(_told(here.app, event), flush=True)


def _told(app: str, event: Event) -> str:
    match event:
        case Shifted(version, weight):
            return f"version {shown(version)} has {weight} % of the messages of app {app}"
        case Faulty(version, why):
            return f"version {shown(version)}: {why}"
        case Scarce(version, handled):
            return f"version {shown(version)} waits for {ENOUGH} messages; {handled} came so far"
        case Promoted(version):
            return f"version {shown(version)} is the baseline of app {app}; the other one is drained, and safe to stop"
        case RolledBack(baseline, candidate, sent):
            again = f", and {sent} that had died at {shown(candidate)}" if sent else ""
            return f"version {shown(baseline)} has all messages of app {app} again{again}"
