"""Directions: the settings by which operators direct the fleet, and the flows that rest in reduced service."""

import logging
from collections.abc import Collection
from math import ceil

from flowkit.app import App
from flowkit.model.flow import Flow
from flowkit.ports import DRAINED, LANES, MINIMUM, NORMAL, PAUSED, Store

_log = logging.getLogger("flowkit.worker")


class Directions:
    """The directions of one app, as its worker has read them last. Any thread may ask. `read`, `reduce` and `suffices`
    block."""

    def __init__(self, app: App, store: Store) -> None:
        self._app = app
        self._store = store
        self.current = store.directions.read()
        """The directions of the fleet: (what, name) -> value."""
        self.shed: frozenset[str] = frozenset()
        """The flows that rest because the service is reduced."""

    def read(self) -> None:
        """Read the directions again."""
        self.current = self._store.directions.read()

    def reduce(self) -> None:
        """Decide which flows rest, by the number of workers that are ready."""
        self.shed = self._shed()

    def rests(self, flow: Flow) -> bool:
        """Return whether a flow rests: it, or its app, is paused, or the service is reduced. A flow that rests begins
        no message, and finishes those that it has begun."""
        return bool(self.current) and (self._directed(PAUSED, flow.name) or flow.name in self.shed)

    @property
    def resting(self) -> list[tuple[str, str]]:
        """The directions that pause or drain this app or one of its flows, as (what, name)."""
        mine = {self._app.name, *self._app.flows}
        return sorted((what, name) for what, name in self.current if what in (PAUSED, DRAINED) and name in mine)

    def refuses(self, flow: str = "") -> str:
        """Return why a flow, or the whole app, accepts no messages from outside now; empty while it accepts them."""
        if not self.current:
            return ""
        if self._directed(DRAINED, flow):
            return "drained"
        return "shed, for fewer workers are ready than the normal service takes" if flow in self.shed else ""

    def suffices(self) -> bool:
        """Return whether enough workers are ready for the minimum service: one, unless operators set a number."""
        minimum = self.current.get((MINIMUM, self._app.name), 1)
        return minimum <= 1 or self._store.fleet.ready(self._app.name) >= minimum

    def many(self, flow: Flow) -> int:
        """Return the number of lanes of a flow."""
        return self.current.get((LANES, flow.name)) or flow.lanes(self._store.serial)

    def _directed(self, what: str, flow: str) -> bool:
        """Return whether a direction is given, for a flow or for the whole app."""
        return (what, flow) in self.current or (what, self._app.name) in self.current

    def _shed(self) -> frozenset[str]:
        name = self._app.name
        normal = self.current.get((NORMAL, name))
        if normal is None:
            return frozenset()
        minimum = self.current.get((MINIMUM, name), 1)
        found = shed(self._app.flows.values(), self._store.fleet.ready(name), normal, minimum)
        if found != self.shed:
            _log.warning(
                "app %s: %s", name, f"reduced service; shed: {', '.join(sorted(found))}" if found else "full service"
            )
        return found


def shed(flows: Collection[Flow], ready: int, normal: int, minimum: int) -> frozenset[str]:
    """Return the names of the flows that rest when `ready` workers are ready.

    With `normal` workers or more, none rests. With `minimum` or fewer, all but those of the highest priority rest. In
    between, the lowest priorities rest, in proportion to the workers that are missing.
    """
    priorities = sorted({flow.priority for flow in flows})
    missing, most = normal - ready, max(1, normal - minimum)
    levels = min(len(priorities) - 1, ceil(missing / most * (len(priorities) - 1))) if missing > 0 else 0
    return frozenset(flow.name for flow in flows if flow.priority in priorities[: max(0, levels)])
