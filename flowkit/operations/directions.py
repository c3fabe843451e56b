"""Directions: operators pause, drain, scale and resume the whole fleet, by the store."""

import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from flowkit.errors import ConfigError
from flowkit.operations.names import similar
from flowkit.operations.store import OperatedStore
from flowkit.plain import plain
from flowkit.ports import DIRECTIONS, LANES, MINIMUM, NORMAL, WORKERS

LOOK_SECONDS = 0.2
SILENT_SECONDS = 5.0
"""Workers that were silent for longer are not waited for."""
UNDER_WAY_SECONDS = 1.0
"""Longest time between a request that a worker lets in before it hears, and its commit."""


class Drained(NamedTuple):
    """The end of a wait for flows that get nothing from outside to be empty."""

    left: int
    """Messages that were not at their end in time."""
    lost: Sequence[str]
    """Flows that no app has any more, and that messages wait for."""


def direct(store: OperatedStore, what: str, names: Collection[str]) -> None:
    """Let these flows or apps be PAUSED or DRAINED. Blocks until all workers have heard of it. Raises ConfigError for
    a name that nothing has."""
    _check(store, names)
    store.directions.set(what, names, 1)
    _wait_for_workers(store, names)


def drained(store: OperatedStore, names: Collection[str], seconds: float) -> Drained:
    """Wait until these apps or flows, which are directed to be DRAINED, are empty; at most so long."""
    end = time.monotonic() + seconds
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
                return Drained(left, lost)
        time.sleep(LOOK_SECONDS)
    return Drained(0, lost)


def scale(store: OperatedStore, name: str, many: int) -> str:
    """Let each instance of an app have so many workers, or each worker so many lanes of a flow. Waits for nobody.
    Returns which: WORKERS or LANES. Raises ConfigError for a name that nothing has."""
    _check(store, [name])
    what = LANES if "." in name else WORKERS
    store.directions.set(what, [name], many)
    return what


def reduce(store: OperatedStore, app: str, normal: int | None, minimum: int | None) -> None:
    """Let a fleet know with how many workers the service of an app is normal, and its minimum; None: it never is
    reduced. Raises ConfigError for an app that is not there."""
    _check(store, [app])
    store.directions.set(NORMAL, [app], normal)
    store.directions.set(MINIMUM, [app], minimum)


def resume(store: OperatedStore, names: Collection[str]) -> None:
    """Let them be as they are defined; an app with all of its flows. Blocks until all workers have heard of it. Raises
    ConfigError for a name that nothing has."""
    _check(store, names)
    flows = [flow for flow in store.subscribers.channels() if _app(flow) in names]
    for what in DIRECTIONS:
        store.directions.set(what, [*names, *flows], None)
    _wait_for_workers(store, names)


def _check(store: OperatedStore, names: Collection[str]) -> None:
    """Refuse names that nothing has."""
    flows = store.subscribers.channels()
    known = {*flows, *map(_app, flows)}
    if unknown := sorted(set(names) - known):
        meant = similar(unknown[0], known)
        raise ConfigError(
            f"no flow or app {', '.join(map(plain, unknown))} is in this store{meant}; flowkit status names the flows"
        )


def _wait_for_workers(store: OperatedStore, names: Collection[str]) -> None:
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
