"""Directions: what operators direct the fleet to, and which flows rest when the service is reduced."""

import logging
from collections.abc import Collection
from math import ceil

from flowkit.app import App
from flowkit.model.flow import Flow
from flowkit.ports import DRAINED, LANES, MINIMUM, NORMAL, PAUSED, Store

_log = logging.getLogger("flowkit.worker")


class Directions:
    """The directions of one app, as its worker read them last. Any thread may ask; `read` and `reduce` block."""

    def __init__(self, app: App, store: Store) -> None:
        self._app = app
        self._store = store
        self.current = store.directions.read()
        """What the fleet is directed to: (what, name) -> value."""
        self.shed: frozenset[str] = frozenset()
        """The flows that rest, because the service is reduced."""

    def read(self) -> None:
        """Read the directions again."""
        self.current = self._store.directions.read()

    def reduce(self) -> None:
        """Decide which flows rest: fewer workers may be ready than the normal service takes."""
        self.shed = self._shed()

    def rests(self, flow: Flow) -> bool:
        """Whether a flow, or the app, is paused: it begins nothing, and finishes what it has begun."""
        return bool(self.current) and (self._directed(PAUSED, flow.name) or flow.name in self.shed)

    @property
    def resting(self) -> list[tuple[str, str]]:
        """What of this app is paused or drained by direction: (what, name)."""
        mine = {self._app.name, *self._app.flows}
        return sorted((what, name) for what, name in self.current if what in (PAUSED, DRAINED) and name in mine)

    def refuses(self, flow: str = "") -> str:
        """Why a flow, or each flow of the app, gets nothing from outside now; empty while it does."""
        if not self.current:
            return ""
        if self._directed(DRAINED, flow):
            return "drained"
        return "shed, for fewer workers are ready than the normal service takes" if flow in self.shed else ""

    def suffices(self) -> bool:
        """Whether enough workers are ready for the minimum service. One is enough, unless a number is given. Blocks."""
        minimum = self.current.get((MINIMUM, self._app.name), 1)
        return minimum <= 1 or self._store.fleet.ready(self._app.name) >= minimum

    def many(self, flow: Flow) -> int:
        """How many lanes a flow has."""
        return self.current.get((LANES, flow.name)) or flow.lanes(self._store.serial)

    def _directed(self, what: str, flow: str) -> bool:
        """Whether the fleet is directed to this, for a flow or for the app."""
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
    """The names of the flows that rest, lowest priority first: none with `normal` workers, and all but those of the
    highest priority with `minimum` or fewer; in between in proportion to those that are missing."""
    priorities = sorted({flow.priority for flow in flows})
    missing, most = normal - ready, max(1, normal - minimum)
    levels = min(len(priorities) - 1, ceil(missing / most * (len(priorities) - 1))) if missing > 0 else 0
    return frozenset(flow.name for flow in flows if flow.priority in priorities[: max(0, levels)])
