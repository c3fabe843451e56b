"""`flowkit rollout`: start, shift, promote and roll back a candidate, and show the versions."""

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
    """Parse the options of a ramp. Raises ConfigError and DefinitionError."""
    return Ramp(_percents(steps), duration.seconds(every, "--every"), Plan(errors, duration.seconds(p99, "--p99")))


def _percents(steps: str) -> list[int]:
    """Parse the weights of a ramp, in percent. Raises ConfigError."""
    try:
        found = [int(one) for one in steps.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one <= 100 for one in found) or found != sorted(found):
        raise ConfigError(f"--steps {steps}: write rising percents, such as 25,50,100")
    return found


@contextmanager
def fleet(app: str) -> Iterator[Fleet]:
    """Open the versions of an app. Blocks. Raises ConfigError."""
    settings = Settings.read()
    with opened_store(settings) as store:
        yield Fleet(store, app, settings.lease)


def start(version: str, weight: int, app: str, ramp: Ramp | None) -> int:
    """Make a version the candidate, with `weight` percent of the messages. With a ramp, stay and raise the weight;
    returns 1 if the candidate was rolled back. Blocks."""
    with unchecked_services() as services:
        here = Fleet(operated(services.store), app, services.settings.lease)
        if ramp is None:
            _tell(here, rollouts.start(here, services.transport, version, weight))
            return 0
        return _watch(here, climb(here, services.transport, version, weight, ramp))


def _watch(here: Fleet, events: Iterator[Event]) -> int:
    """Print the events of a ramp until the rollout is over. Returns the exit code. Blocks."""
    event: Event | None = None
    try:
        for event in events:
            _tell(here, event)
    except KeyboardInterrupt:
        print("the ramp stops, and the rollout keeps its weight; see flowkit rollout status")
        raise
    return 1 if isinstance(event, RolledBack) else 0


def shift(weight: int, app: str) -> None:
    """Change the candidate's weight, in percent. Blocks."""
    with fleet(app) as here:
        _tell(here, rollouts.shift(here, weight))


def promote(version: str | None, app: str) -> None:
    """Make a version the baseline: `version`, which waits, or the candidate if None. Blocks."""
    if version == "":
        raise ConfigError(f"the version is empty; write '{NONE}' for instances without --version")
    with fleet(app) as here:
        _tell(here, rollouts.promote(here, "" if version == NONE else version))


def rollback(app: str) -> None:
    """Give all messages to the baseline again, and retry the candidate's dead letters there. Finishes an earlier
    rollback that was interrupted. Blocks."""
    with fleet(app) as here:
        _tell(here, rollouts.roll_back(here))


def status(app: str, json: bool) -> None:
    """Print the versions and their figures."""
    with fleet(app) as here:
        rollout = here.rollout
        found = here.versions(rollout)
    if json:
        told = [{**one._asdict(), "figures": one.figures._asdict()} for one in found]
        show.as_json({"app": here.app, "settled": rollout.settled, "versions": told})
        return
    show.table(
        f"App {here.app}",
        ["version", "", "share", "workers", "messages lately", "failed", "99 % within"],
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
            print(f"version {shown(one.name)} is drained: it is safe to stop it")
    if not rollout.settled:
        print("some workers still finish messages that they began before the last change")


def _figures(one: Version) -> tuple[str, str, str]:
    """The figures of a version, or dashes: a rollout counts from a few seconds after a change."""
    if not one.figures.handled:
        return "–", "–", "–"
    return f"{one.figures.handled}", f"{one.failing:.1f} %", f"{one.figures.p99 * 1e3:.0f} ms"


def _tell(here: Fleet, event: Event) -> None:
    """Print an event and flush, because another program may read the pipe."""
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
            again = f", and {sent} dead letters of {shown(candidate)}" if sent else ""
            return f"version {shown(baseline)} has all messages of app {app} again{again}"
