"""`flowkit pause`, `drain`, `scale` and `resume`: direct the whole fleet through the store."""

from collections.abc import Collection
from pathlib import Path

from flowkit import duration
from flowkit.cli.opened import opened_store
from flowkit.operations import directions
from flowkit.plain import plain
from flowkit.ports import DRAINED, PAUSED
from flowkit.sla import agreement, planning


def pause(names: Collection[str]) -> None:
    """Direct these flows or apps to begin no message. Handlers that run finish; new messages are accepted, and wait.
    Blocks until all workers have read it."""
    with opened_store() as store:
        directions.direct(store, PAUSED, names)
    print(f"{_listed(names)}: {PAUSED}")


def drain(names: Collection[str], wait: str) -> int:
    """Direct these apps or flows to accept nothing from outside, and wait until they are empty. Returns 1 if they are
    not empty in time. Blocks."""
    seconds = duration.seconds(wait, "--wait")
    with opened_store() as store:
        directions.direct(store, DRAINED, names)
        print(f"{_listed(names)}: {DRAINED}")
        found = directions.drained(store, names, seconds)
    if found.left:
        print(
            f"{found.left:,} message(s) are still pending after {wait}; flowkit status shows what they wait "
            f"for. Nothing is accepted from outside until flowkit resume {_listed(names)}"
        )
    elif found.lost:
        print(f"no app has {_listed(found.lost)} any more, and messages wait for it: see flowkit subscriptions list")
    else:
        print("drained: nothing is left")
    return 1 if found.left or found.lost else 0


def scale(name: str, many: int) -> None:
    """Direct the workers of each instance of an app, or the lanes of a flow in each worker. Waits for no worker."""
    with opened_store() as store:
        what = directions.scale(store, name, many)
    print(f"{plain(name)}: {what} {many}")


def reduce(app: str, path: Path | None, workers: int) -> None:
    """Derive from an agreement, with `workers` per instance, below how many ready workers an app's service is reduced.
    Without `path` it is never reduced."""
    plan = planning.plan(agreement.read(path)) if path is not None else None
    normal, minimum = (plan.for_normal * workers, plan.for_minimum * workers) if plan is not None else (None, None)
    with opened_store() as store:
        directions.reduce(store, app, normal, minimum)
    how = f"is reduced below {normal} workers, and to its minimum at {minimum}" if normal else "is never reduced"
    print(f"the service of {plain(app)} {how}")


def resume(names: Collection[str]) -> None:
    """Remove all directions of these flows or apps; of an app, those of its flows too. Blocks until all workers have
    read it."""
    with opened_store() as store:
        directions.resume(store, names)
    print(f"{_listed(names)}: as defined")


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(plain, names))
