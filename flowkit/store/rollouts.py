"""Rollouts: the baseline of an app, the candidate beside it, and the candidate's weight."""

from collections.abc import Collection

from flowkit.errors import StoreConflict
from flowkit.ports import CANDIDATE, Rollout
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND


class Rollouts:
    """Implements ports.Rollouts. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, app: str, silent: float) -> Rollout | None:
        with self._database.unit("") as unit:
            found = unit.read(self._database.sql.rollout, (int(silent * MICROSECOND), app))
        return next(
            (
                Rollout(baseline, candidate, weight, before, epoch, age / MICROSECOND, not behind)
                for baseline, candidate, weight, before, epoch, age, behind in found
            ),
            None,
        )

    def enter(self, app: str, version: str, silent: float) -> Rollout | None:
        found = self.read(app, silent)
        if found is None and version:
            with self._database.transaction(fenced=False) as unit:
                unit.write(self._database.sql.begin_rollouts, [(app, app, version, int(silent * MICROSECOND), version)])
            found = self.read(app, silent)
        return found

    def change(self, app: str, flows: Collection[str], rollout: Rollout) -> None:
        with self._database.transaction() as unit:
            unit.begin()
            unit.write(self._database.sql.subscribe, [(flow + CANDIDATE, "") for flow in sorted(flows)])
            state = (rollout.baseline, rollout.candidate, rollout.weight, rollout.before)
            if not unit.read(self._database.sql.change_rollout, (*state, app, rollout.epoch)):
                raise StoreConflict(f"another operator has just changed the rollout of app {app}; look at it again")
        self._database.notify(flows)
