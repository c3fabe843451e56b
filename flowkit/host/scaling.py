"""Scaling: a supervisor follows the directed numbers of workers and lanes."""

import logging
from collections.abc import Collection

from flowkit.app import App
from flowkit.errors import StoreConflict, Unavailable
from flowkit.host.supervisor import Supervisor
from flowkit.operations.comparison import versions
from flowkit.operations.store import operated
from flowkit.ports import LANES, WORKERS
from flowkit.services import Services

LOOK_SECONDS = 1.0
_log = logging.getLogger("flowkit.run")


class Scaling:
    """Makes a supervisor follow the fleet's directions: the number of workers, and of lanes in each."""

    def __init__(
        self, services: Services, app: App, flows: Collection[str], workers: int, supervisor: Supervisor
    ) -> None:
        """`workers`: their number without a direction."""
        self._services = services
        self._app, self._flows = app.name, flows
        self._usual = self._workers = workers
        self._supervisor = supervisor
        self._lanes: dict[str, int] | None = None
        self._looked = float("-inf")
        self._failed = ""
        """The error of the last look."""
        self.share = 1.0
        """The requests that this instance should get, from 0 to 1. 1: as many as an instance of the version with most
        requests per worker."""

    def step(self) -> None:
        """Once a second, read the directions and follow them. Blocks for one read. Raises StoreLost."""
        now = self._services.clock.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._services.store.check_place()  # an error ends the instance: none of its work would be kept
        try:
            directions = self._services.store.directions.read()
            self.share = self._share()
        except Exception as error:
            # Any error: if the supervisor ended, so would its workers. They log that the database cannot be reached.
            known = isinstance(error, Unavailable | StoreConflict) or str(error) == self._failed
            _log.log(
                logging.DEBUG if known else logging.ERROR,
                "app %s: cannot read the fleet's directions; tries again in %g s: %s",
                self._app, LOOK_SECONDS, error,
            )  # fmt: skip
            self._failed = str(error)
            return
        self._failed = ""
        workers = directions.get((WORKERS, self._app), self._usual)
        if workers != self._workers:
            _log.info("app %s: %d workers", self._app, workers)
            self._supervisor.resize(workers)
            self._workers = workers
        before, self._lanes = self._lanes, {flow: directions.get((LANES, flow), 0) for flow in self._flows}
        if before not in (None, self._lanes):
            _log.info("app %s: the workers are replaced, because numbers of lanes changed", self._app)
            self._supervisor.roll()

    def _share(self) -> float:
        """Requests per ready worker of this instance's version, relative to the version with the most."""
        settings, store = self._services.settings, self._services.store
        rollout = store.rollouts.read(self._app, settings.lease)
        if rollout is None:
            return 1.0
        found = versions(rollout, [one for one in operated(store).ledger.workers() if one.app == self._app])
        each = {one.name: one.share / one.ready for one in found if one.ready}
        return each.get(settings.version, 0.0) / max(each.values(), default=1.0) if any(each.values()) else 1.0
