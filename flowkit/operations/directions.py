"""Directions: operators pause, drain, scale and resume the whole fleet through the store."""

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
"""Workers without a heartbeat for this many seconds are not waited for."""
UNDER_WAY_SECONDS = 1.0
"""Longest time in seconds until a request commits that a worker accepted before it read a direction."""


class Drained(NamedTuple):
    """The result of a wait for drained flows to be empty."""

    left: int
    """Messages still pending when the time was over."""
    lost: Sequence[str]
    """Orphaned flows with pending messages."""


def direct(store: OperatedStore, what: str, names: Collection[str]) -> None:
    """Direct these flows or apps to be `what`: PAUSED or DRAINED. Blocks until all workers have read it. Raises
    ConfigError for an unknown name."""
    _check(store, names)
    store.directions.set(what, names, 1)
    _wait_for_workers(store, names)


def drained(store: OperatedStore, names: Collection[str], seconds: float) -> Drained:
    """Wait until these DRAINED apps or flows are empty, for `seconds` at most. Blocks."""
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
    """Direct the workers of each instance of an app, or the lanes of a flow in each worker. Does not wait for workers.
    Returns WORKERS or LANES. Raises ConfigError for an unknown name."""
    _check(store, [name])
    what = LANES if "." in name else WORKERS
    store.directions.set(what, [name], many)
    return what


def reduce(store: OperatedStore, app: str, normal: int | None, minimum: int | None) -> None:
    """Set the numbers of ready workers that an app's normal and minimum service need; None: its service is never
    reduced. Raises ConfigError for an unknown app."""
    _check(store, [app])
    store.directions.set(NORMAL, [app], normal)
    store.directions.set(MINIMUM, [app], minimum)


def resume(store: OperatedStore, names: Collection[str]) -> None:
    """Remove all directions of these flows or apps; of an app, those of its flows too. Blocks until all workers have
    read it. Raises ConfigError for an unknown name."""
    _check(store, names)
    flows = [flow for flow in store.subscribers.channels() if _app(flow) in names]
    for what in DIRECTIONS:
        store.directions.set(what, [*names, *flows], None)
    _wait_for_workers(store, names)


def _check(store: OperatedStore, names: Collection[str]) -> None:
    """Raise ConfigError for names that are neither a subscribed flow nor its app."""
    flows = store.subscribers.channels()
    known = {*flows, *map(_app, flows)}
    if unknown := sorted(set(names) - known):
        meant = similar(unknown[0], known)
        raise ConfigError(
            f"no flow or app {', '.join(map(plain, unknown))} is in this store{meant}; flowkit status names the flows"
        )


def _wait_for_workers(store: OperatedStore, names: Collection[str]) -> None:
    """Wait until every living worker has read a new direction. A worker reads directions after each heartbeat, so it
    has read this one by its second heartbeat."""
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
