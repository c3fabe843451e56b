"""`flowkit sla`: the downtime that an agreement permits, the instances that it needs, and the measured uptime."""

from collections.abc import Sequence
from pathlib import Path

from flowkit import duration
from flowkit.cli import show
from flowkit.errors import ConfigError
from flowkit.plain import plain
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.sla import agreement, planning
from flowkit.sla.uptime import record

MOST_OUTAGES = 10
PRECISE_SECONDS = 60.0
"""Times below this are printed with decimals."""


def budget(availabilities: Sequence[float], json: bool) -> None:
    """Print the permitted downtime at each availability, in percent. Raises ConfigError."""
    for one in availabilities:
        if not 0 < one < 100:
            raise ConfigError(f"an availability of {one:g} %: write a percentage above 0 and below 100, such as 99.9")
    budgets = [planning.budget(one) for one in availabilities]
    if json:
        show.as_json([one._asdict() for one in budgets])
        return
    show.table(
        "Permitted downtime",
        ["availability", "a week", "a year"],
        [(f"{one.availability:g} %", text(one.per_week_s), text(one.per_year_s)) for one in budgets],
    )


def init(path: Path) -> None:
    """Write an example agreement. Raises ConfigError if the file exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as made:
            made.write(agreement.TEMPLATE)
    except FileExistsError:
        raise ConfigError(f"{path} exists already, and is kept; name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path} is written; change it, then: flowkit sla plan {path}")


def plan(path: Path, json: bool) -> int:
    """Print the instances that an agreement needs, and why. Returns 1 if none of these numbers keeps it."""
    agreed = agreement.read(path)
    found = planning.plan(agreed)
    enough = [one.nodes for one in found.choices.values() if one.kept]
    if json:
        show.as_json(_as_json(found))
        return int(not enough)
    normal, minimum, node = agreed.normal, agreed.minimum, agreed.node
    print(f"Normal service: {normal.tps:g} TPS at {node.tps:g} TPS a node take {nodes(found.for_normal)}.")
    print(f"Minimum service: {minimum.tps:g} TPS take {nodes(found.for_minimum)}.")
    print(
        f"High availability, the minimum after one failure: {nodes(found.high_availability)}: as many as the normal "
        "service takes, and one more than the minimum."
    )
    for failures, many in found.fault_tolerance.items():
        print(f"Fault tolerance, the normal service after {failures} at once: {nodes(many)}, {failures} more.")
    print()
    show.table(
        f"One node is up {node.up:.4%} of the time; {agreed.availability:g} % are agreed",
        ["nodes", "below normal", "a week", "below minimum, or a tier down", "a week", "agreement"],
        [
            (
                one.nodes,
                share(one.below_normal),
                text(one.below_normal * agreement.WEEK_SECONDS),
                share(one.below_minimum),
                text(one.below_minimum * agreement.WEEK_SECONDS),
                "kept" if one.kept else "missed",
            )
            for one in found.choices.values()
        ],
    )
    print(
        f"\nThe agreement is kept with {nodes(min(enough))}."
        if enough
        else "\nThe agreement is kept with none of these: take nodes that fail less or are repaired sooner, or more "
        "nodes in a tier"
    )
    for name, part in found.tiers.items():
        tier = agreed.tiers[name]
        print(f"\n{name}: {tier.needed} of {nodes(tier.nodes)} needed, up {part:.4%} of the time")
    for name in found.single_points:
        print(f"\n{name} is a single point of failure: when one of its nodes fails, the service ends; add a node")
    return int(not enough)


def _as_json(found: planning.Plan) -> dict[str, object]:
    enough = [one.nodes for one in found.choices.values() if one.kept]
    return {
        "nodes": {
            "normal": found.for_normal,
            "minimum": found.for_minimum,
            "high_availability": found.high_availability,
            "fault_tolerance": {str(failures): nodes for failures, nodes in found.fault_tolerance.items()},
        },
        "kept_with": min(enough, default=None),
        "choices": [one._asdict() for one in found.choices.values()],
        "tiers": dict(found.tiers),
        "single_points_of_failure": list(found.single_points),
    }


def report(app: str, path: Path, last: str, json: bool) -> int:
    """Print the measured availability of an app. Returns 1 if its downtime exceeds the permitted one."""
    agreed, seconds = agreement.read(path), duration.seconds(last, "--last")
    store = open_store(Settings.read(), create=False)
    try:
        found = record(store.uptime.read(app, seconds), seconds, agreed.availability)
    finally:
        store.close()
    if not found.seconds:
        raise ConfigError(f"nothing is known of app {plain(app)} in the last {last}; flowkit status names the apps")
    if json:
        show.as_json(
            {
                "seconds": found.seconds,
                "availability": found.availability,
                "down_s": found.down,
                "permitted_s": found.permitted,
                "kept": found.kept,
                "outages": [one._asdict() for one in found.outages],
            }
        )
        return int(not found.kept)
    print(
        f"{plain(app)}, the last {text(found.seconds)}: available {found.availability:.4f} %, "
        f"and {agreed.availability:g} % are agreed"
    )
    print(f"down {text(found.down)} of the {text(found.permitted)} that are permitted in this time")
    for one in found.outages[-MOST_OUTAGES:]:
        print(f"  {text(one.begin)} ago, for {text(one.seconds)}")
    return int(not found.kept)


def nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def share(part: float) -> str:
    """A probability in percent; a small one is not rounded to 0."""
    return f"{100 * part:.2g} %" if 0 < part < 1e-4 else f"{100 * part:.4f} %"


def text(seconds: float) -> str:
    """A time span as text, in one unit."""
    if seconds < PRECISE_SECONDS:
        return f"{seconds:.3g}s"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.2f}".rstrip("0").rstrip(".") + unit
    return duration.text(seconds)
