"""`flowkit pause`, `drain`, `scale` and `resume`: what the whole fleet is directed to, by the store."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flowkit import duration
from flowkit.cli.plain import plain
from flowkit.config import Settings, open_store
from flowkit.continuity import agreement, planning
from flowkit.errors import ConfigError
from flowkit.ports import DIRECTIONS, DRAINED, LANES, MINIMUM, NORMAL, PAUSED, WORKERS

LOOK_SECONDS = 0.2


def pause(names: Collection[str]) -> None:
    """Let these flows or apps begin nothing. What has begun is finished; what comes is accepted, and waits."""
    _direct(PAUSED, names, 1)


def drain(names: Collection[str], wait: str) -> int:
    """Let these apps or flows get nothing from outside, and wait until they are empty. Returns 1 when they are not in
    time."""
    seconds = duration.seconds(wait, "--wait")
    _direct(DRAINED, names, 1)
    store, end = _open(), time.monotonic() + seconds
    try:
        flows = [flow for flow in store.subscriptions() if {flow, flow.split(".", 1)[0]} & set(names)]
        while left := store.unfinished(flows):
            if time.monotonic() > end:
                print(f"{left:,} message(s) are not at their end after {wait}")
                return 1
            time.sleep(LOOK_SECONDS)
    finally:
        store.close()
    print("drained: nothing is left")
    return 0


def scale(name: str, many: int) -> None:
    """Let each instance of an app have so many workers, or each worker so many lanes of a flow."""
    _direct(LANES if "." in name else WORKERS, [name], many)


def reduce(app: str, path: Path, workers: int, off: bool) -> None:
    """Let a fleet know from how many workers on the service of an app is reduced; or no more."""
    plan = planning.plan(agreement.read(path))
    normal, minimum = plan.for_normal * workers, plan.for_minimum * workers
    store = _open()
    try:
        _check(store, [app])
        store.direct(NORMAL, [app], None if off else normal)
        store.direct(MINIMUM, [app], None if off else minimum)
    finally:
        store.close()
    how = "is never reduced" if off else f"is reduced below {normal} workers, and to its minimum at {minimum}"
    print(f"the service of {plain(app)} {how}")


def resume(names: Collection[str]) -> None:
    """Let them be as they are defined."""
    store = _open()
    try:
        _check(store, names)
        for what in DIRECTIONS:
            store.direct(what, names, None)
    finally:
        store.close()
    print(f"{_listed(names)}: as defined")


def _direct(what: str, names: Collection[str], value: int) -> None:
    store = _open()
    try:
        _check(store, names)
        store.direct(what, names, value)
    finally:
        store.close()
    print(f"{_listed(names)}: {what}{f' {value}' if what in (WORKERS, LANES) else ''}")


def _check(store: Any, names: Collection[str]) -> None:
    """Refuse names that nothing has."""
    flows = store.subscriptions()
    known = {*flows, *(flow.split(".", 1)[0] for flow in flows)}
    if unknown := sorted(set(names) - known):
        raise ConfigError(f"no flow or app {_listed(unknown)} is in this store; flowkit status names the flows")


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(plain, names))


def _open() -> Any:
    return open_store(Settings.read(), create=False)
