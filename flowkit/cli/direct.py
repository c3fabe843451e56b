"""`flowkit pause`, `drain`, `scale` and `resume`: what the whole fleet is directed to, by the store."""

from collections.abc import Collection
from pathlib import Path

from flowkit import duration
from flowkit.cli.opened import opened_store
from flowkit.operations import directions
from flowkit.plain import plain
from flowkit.ports import DRAINED, PAUSED
from flowkit.sla import agreement, planning


def pause(names: Collection[str]) -> None:
    """Let these flows or apps begin nothing. What has begun is finished; what comes is accepted, and waits. Blocks
    until all workers have heard of it."""
    with opened_store() as store:
        directions.direct(store, PAUSED, names)
    print(f"{_listed(names)}: {PAUSED}")


def drain(names: Collection[str], wait: str) -> int:
    """Let these apps or flows get nothing from outside, and wait until they are empty. Returns 1 when they are not in
    time."""
    seconds = duration.seconds(wait, "--wait")
    with opened_store() as store:
        directions.direct(store, DRAINED, names)
        print(f"{_listed(names)}: {DRAINED}")
        found = directions.drained(store, names, seconds)
    if found.left:
        print(
            f"{found.left:,} message(s) are not at their end after {wait}; flowkit status shows what they wait "
            f"for. Nothing comes from outside until flowkit resume {_listed(names)}"
        )
    elif found.lost:
        print(f"no app has {_listed(found.lost)} any more, and messages wait for it: see flowkit subscriptions list")
    else:
        print("drained: nothing is left")
    return 1 if found.left or found.lost else 0


def scale(name: str, many: int) -> None:
    """Let each instance of an app have so many workers, or each worker so many lanes of a flow. Waits for nobody."""
    with opened_store() as store:
        what = directions.scale(store, name, many)
    print(f"{plain(name)}: {what} {many}")


def reduce(app: str, path: Path | None, workers: int) -> None:
    """Let a fleet know from how many workers on, each node having so many, the service of an app is reduced by this
    agreement; without one it never is."""
    plan = planning.plan(agreement.read(path)) if path is not None else None
    normal, minimum = (plan.for_normal * workers, plan.for_minimum * workers) if plan is not None else (None, None)
    with opened_store() as store:
        directions.reduce(store, app, normal, minimum)
    how = f"is reduced below {normal} workers, and to its minimum at {minimum}" if normal else "is never reduced"
    print(f"the service of {plain(app)} {how}")


def resume(names: Collection[str]) -> None:
    """Let them be as they are defined; an app with all of its flows. Blocks until all workers have heard of it."""
    with opened_store() as store:
        directions.resume(store, names)
    print(f"{_listed(names)}: as defined")


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(plain, names))
