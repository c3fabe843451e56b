"""Maintenance: the heartbeat of a worker, the renewal of its leases, and retention."""

from collections.abc import Sequence

from flowkit.app import App
from flowkit.engine.adoption import KnownApps
from flowkit.engine.directions import Directions
from flowkit.engine.dispatcher import BEAT_SECONDS, Dispatcher
from flowkit.engine.figures import RecentFigures
from flowkit.engine.lane import Lane
from flowkit.engine.membership import Membership
from flowkit.engine.outages import WATCH_SECONDS
from flowkit.engine.readiness import Readiness
from flowkit.engine.versions import Versions
from flowkit.ports import Retention
from flowkit.services import Services

CLEAN_SECONDS = 10.0
MUCH = 1000
"""The number of removed rows at which a cleaning has more to do, and the next one follows at once."""


class Maintenance:
    """The work of a worker at intervals. One thread at a time may call it; every call blocks."""

    def __init__(
        self,
        app: App,
        services: Services,
        worker: str,
        *,
        lanes: Sequence[Lane],
        dispatcher: Dispatcher,
        directions: Directions,
        versions: Versions,
        figures: RecentFigures,
        apps: KnownApps,
        membership: Membership,
        readiness: Readiness,
    ) -> None:
        """`worker`: its id."""
        self._app = app
        self._services = services
        self._store = services.store
        self._worker = worker
        self._lanes = lanes
        self._dispatcher = dispatcher
        self._directions = directions
        self._versions = versions
        self._figures = figures
        self._apps = apps
        self._membership = membership
        self._readiness = readiness
        self._beaten = self._looked = self._renewed = self._cleaned = float("-inf")

    def tick(self) -> None:
        """Do what is due."""
        now = self._services.clock.monotonic()
        if self._follow(now):
            self._beat(now)
        if now - self._renewed >= self._services.settings.lease / 3:
            self._renew()
            self._renewed = now
        if now - self._cleaned >= CLEAN_SECONDS:
            self._cleaned = now  # set first: if the cleaning fails, messages do not wait for it
            self._clean()

    def _follow(self, now: float) -> bool:
        """Look at the rollout, if that is due. Returns whether a heartbeat is due."""
        versions = self._versions
        beat = now - self._beaten >= BEAT_SECONDS
        if beat or (versions.rollout is not None and now - self._looked >= WATCH_SECONDS):
            self._looked, before = now, versions.state
            beat = versions.look() or beat
            if before != versions.state:
                self._figures.begin()
                self._dispatcher.heat_all()
        return beat

    def _beat(self, now: float) -> None:
        """Report the state of the worker to the fleet, and read the directions of the fleet."""
        store, directions, readiness = self._store, self._directions, self._readiness
        waits = readiness.state == "ready" and self._versions.role == "none"
        store.check_place()
        store.fleet.beat(
            self._worker,
            "waiting" if waits else readiness.condition,
            self._versions.epoch,
            self._figures.figures(),
        )
        were = directions.current, directions.shed
        directions.read()
        self._apps.refresh(now)
        directions.reduce()
        if readiness.state == "ready" and not waits and directions.suffices():
            store.uptime.note(self._app.name)
        if were != (directions.current, directions.shed):
            self._dispatcher.heat_all()
            self._dispatcher.look_again()  # lanes that are hot already may go on now
        self._beaten = self._membership.recorded = now

    def _renew(self) -> None:
        """Renew the leases of all rows that the lanes hold."""
        rows = [(one.row, one.deliveries) for lane in self._lanes for one in lane.in_flight if one.row is not None]
        if rows:
            self._store.queue.renew(rows, self._services.settings.lease)

    def _clean(self) -> None:
        """Remove rows that nobody needs any more, a bounded number of them."""
        app = self._app
        removed = self._store.retention.clean(
            Retention(app.name, list(app.flows), list(app.channels), app.retention, app.dead_letter_hold), self._worker
        )
        if removed >= MUCH:
            self._cleaned = float("-inf")
