"""`flowkit pause`, `drain`, `scale` and `resume`: what the whole fleet is directed to, by the store."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flowkit import duration
from flowkit.cli.name import similar
from flowkit.cli.plain import plain
from flowkit.config import Settings, open_store
from flowkit.continuity import agreement, planning
from flowkit.errors import ConfigError
from flowkit.ports import DIRECTIONS, DRAINED, LANES, MINIMUM, NORMAL, PAUSED, WORKERS

LOOK_SECONDS = 0.2
SILENT_SECONDS = 5.0
"""A worker that was silent for longer is not waited for."""
UNDER_WAY_SECONDS = 1.0
"""So long what a worker had let in before it heard may take to be stored."""


def pause(names: Collection[str]) -> None:
    """Let these flows or apps begin nothing. What has begun is finished; what comes is accepted, and waits. Blocks
    until all workers have heard of it."""
    _direct(PAUSED, names)


def drain(names: Collection[str], wait: str) -> int:
    """Let these apps or flows get nothing from outside, and wait until they are empty. Returns 1 when they are not in
    time."""
    seconds = duration.seconds(wait, "--wait")
    _direct(DRAINED, names)
    store, end = _open(), time.monotonic() + seconds
    try:
        flows = [flow for flow in store.subscribers.channels() if {flow, _app(flow)} & set(names)]
        lost = [
            one.flow for one in store.subscribers.orphans() if one.flow in flows and store.ledger.unfinished([one.flow])
        ]
        flows = [flow for flow in flows if flow not in lost]
        empty = time.monotonic()
        while time.monotonic() - empty < UNDER_WAY_SECONDS:
            if left := store.ledger.unfinished(flows):
                empty = time.monotonic()
                if empty > end:
                    print(
                        f"{left:,} message(s) are not at their end after {wait}; flowkit status shows what they wait "
                        f"for. Nothing comes from outside until flowkit resume {_listed(names)}"
                    )
                    return 1
            time.sleep(LOOK_SECONDS)
    finally:
        store.close()
    if lost:
        print(f"no app has {_listed(lost)} any more, and messages wait for it: see flowkit subscriptions list")
        return 1
    print("drained: nothing is left")
    return 0


def scale(name: str, many: int) -> None:
    """Let each instance of an app have so many workers, or each worker so many lanes of a flow. Waits for nobody."""
    store = _open()
    try:
        _check(store, [name])
        store.directions.set(LANES if "." in name else WORKERS, [name], many)
    finally:
        store.close()
    print(f"{plain(name)}: {LANES if '.' in name else WORKERS} {many}")


def reduce(app: str, path: Path | None, workers: int) -> None:
    """Let a fleet know from how many workers on, each node having so many, the service of an app is reduced by this
    agreement; without one it never is."""
    plan = planning.plan(agreement.read(path)) if path is not None else None
    normal, minimum = (plan.for_normal * workers, plan.for_minimum * workers) if plan is not None else (None, None)
    store = _open()
    try:
        _check(store, [app])
        store.directions.set(NORMAL, [app], normal)
        store.directions.set(MINIMUM, [app], minimum)
    finally:
        store.close()
    how = f"is reduced below {normal} workers, and to its minimum at {minimum}" if normal else "is never reduced"
    print(f"the service of {plain(app)} {how}")


def resume(names: Collection[str]) -> None:
    """Let them be as they are defined; an app with all of its flows. Blocks until all workers have heard of it."""
    store = _open()
    try:
        _check(store, names)
        flows = [flow for flow in store.subscribers.channels() if _app(flow) in names]
        for what in DIRECTIONS:
            store.directions.set(what, [*names, *flows], None)
        _wait_for_workers(store, names)
    finally:
        store.close()
    print(f"{_listed(names)}: as defined")


def _direct(what: str, names: Collection[str]) -> None:
    store = _open()
    try:
        _check(store, names)
        store.directions.set(what, names, 1)
        _wait_for_workers(store, names)
    finally:
        store.close()
    print(f"{_listed(names)}: {what}")


def _check(store: Any, names: Collection[str]) -> None:
    """Refuse names that nothing has."""
    flows = store.subscribers.channels()
    known = {*flows, *map(_app, flows)}
    if unknown := sorted(set(names) - known):
        meant = similar(unknown[0], known)
        raise ConfigError(f"no flow or app {_listed(unknown)} is in this store{meant}; flowkit status names the flows")


def _wait_for_workers(store: Any, names: Collection[str]) -> None:
    """Wait until every worker that lives has heard of a direction: it reads them after each heartbeat, so it has read
    this one when it comes to its second."""
    began, apps = time.monotonic(), set(map(_app, names))
    first: dict[str, float] = {}
    heard = False
    while not heard:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        live = [one for one in store.ledger.workers() if one.app in apps and one.silent < SILENT_SECONDS]
        beats = {one.id: now - one.silent for one in live}
        for id, beat in beats.items():
            if beat > began:
                first.setdefault(id, beat)
        heard = all(beat > first.get(id, now) + LOOK_SECONDS for id, beat in beats.items())


def _app(name: str) -> str:
    """The app of a flow, or the app itself."""
    return name.split(".", 1)[0]


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(plain, names))


def _open() -> Any:
    return open_store(Settings.read(), create=False)
