"""Standby groups of an app: the active group holds a lease by the database's clock, and a token for fencing."""

from flowkit.ports import Standing
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND


class Groups:
    """Implements ports.Groups. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stand(self, app: str, group: str, seconds: float, ready: bool) -> Standing | None:
        sql, standing = self._database.sql, self.standing(app)
        name, time = _name(app), int(seconds * MICROSECOND)
        if standing is not None and standing.group == group:
            with self._database.transaction(fenced=False) as unit:
                unit.write(sql.keep_active, [(time, name, group)])
        elif ready and (standing is None or standing.seconds < 0):
            if standing is None:
                with self._database.transaction(fenced=False) as unit:
                    unit.write(sql.first_active, [(name,)])
            with self._database.transaction(fenced=False) as unit:
                if unit.read(sql.make_active, (time, group, name, group, app, time)):
                    unit.write(sql.free_others, [(app, group)])
                    unit.write(sql.evict, [(app, group)])
        else:
            return standing
        return self.standing(app)

    def step_down(self, app: str, group: str, silent: float) -> None:
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.step_down, [(_name(app), group, app, group, int(silent * MICROSECOND))])

    def standing(self, app: str) -> Standing | None:
        with self._database.unit("") as unit:
            found = unit.read(self._database.sql.active, (_name(app),))
        return next((Standing(group, token, left / MICROSECOND) for group, token, left in found), None)


def _name(app: str) -> str:
    return f"active:{app}"
