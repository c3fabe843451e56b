"""Subscriptions of flows, announcements of apps that only publish, and the removal and renaming of orphans."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.errors import ConfigError
from flowkit.message import UNREAD, Message
from flowkit.ports import CANDIDATE, EXCHANGE, REFUSED, Copy, Delivery, Letter, Tally
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND
from flowkit.store.fleet import Fleet
from flowkit.store.unit import SqlUnit

PUBLISHERS = "publishers"
"""The name in the inbox under which apps without flows are announced. No flow or channel can have it."""
SECONDS = 600.0
"""The deadline, in seconds, of a transaction that removes or renames a whole flow."""
TOGETHER_SECONDS = 5.0
"""Seconds by which the times of a program's flows may differ: it records all of them in one transaction."""


class Subscriber(NamedTuple):
    """A subscribed flow. `silent` is the time since a program with this flow last started, in seconds."""

    flow: str
    channel: str
    silent: float

    @property
    def app(self) -> str:
        return self.flow.split(".", 1)[0]


class Settled(NamedTuple):
    """The result of removing or renaming a flow: numbers of moved copies, moved dead letters, and discarded ones."""

    moved: int = 0
    letters: int = 0
    discarded: int = 0


class Subscribers:
    """The subscriptions of a store. Every call blocks; any thread may call it."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet

    def add(self, subscriptions: Mapping[str, str]) -> None:
        with self._database.transaction() as unit:
            unit.write(self._database.sql.subscribe, sorted(subscriptions.items()))

    def channels(self) -> dict[str, str]:
        """Return flow -> channel, for every app."""
        with self._database.unit("") as unit:
            return dict(unit.read("SELECT flow, channel FROM flowkit_subscriptions WHERE channel <> '' ORDER BY flow"))

    def announce(self, app: str) -> None:
        # The name is claimed in the inbox like an id: every publishing program may write there.
        with self._database.transaction(fenced=False) as unit:
            unit.claim([Delivery(Message("", app, "", b""), PUBLISHERS)])

    def publishers(self) -> list[str]:
        with self._database.unit("") as unit:
            return [app for (app,) in unit.read(f"SELECT source FROM flowkit_inbox WHERE flow = '{PUBLISHERS}'")]

    def read(self) -> list[Subscriber]:
        """Return all subscriptions, ordered by flow."""
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.subscribed)
        return [Subscriber(flow, channel, age / MICROSECOND) for flow, channel, age in rows]

    def orphans(self) -> list[Subscriber]:
        """Return the subscriptions that the last started program of their app does not have."""
        found = [one for one in self.read() if not one.flow.startswith(EXCHANGE)]
        latest: dict[str, float] = {}
        for one in found:
            latest[one.app] = min(one.silent, latest.get(one.app, one.silent))
        return [one for one in found if one.silent > latest[one.app] + TOGETHER_SECONDS]

    def keep(self, flow: str, deliveries: Sequence[Delivery], heir: str = "") -> None:
        """Keep deliveries to a flow from a broker: pending ones as message rows, refused ones as dead letters. Ended
        ones are dropped. One transaction.

        From then on the flow receives nothing more, and no relay sends these rows to it. The new name of the flow,
        `heir`, gets its channel unless it is subscribed already.
        """
        with self._database.transaction() as unit:
            self._unsubscribe(unit, flow, heir)
            open = unit.look(deliveries)
            refused = {one.identity: one for one in deliveries if one.refused and one.identity in open}
            unit.bury([Letter(one, REFUSED, one.refused, "", 0) for one in refused.values()])
            if refused:
                unit.count({flow: Tally(accepted=len(refused), dead=len(refused))})
            unit.stage(
                [
                    Copy(self._database.ids(), one.message, flow, one.generation, one.attempts)
                    for one in deliveries
                    if one.identity in open and not one.refused
                ]
            )

    def remove(self, flow: str) -> Settled:
        """Remove a flow, and discard its pending copies and dead letters. Its ledger stays. One transaction.

        Raises ConfigError, and changes nothing, while messages of it are in flight.
        """
        sql = self._database.sql
        with self._database.unit("", SECONDS) as unit:
            self._begin(unit, flow, "")
            taken = unit.read(sql.take_messages, (*_addresses(flow), flow))
            self._refuse_holders(flow, {worker for *_, worker in taken if worker is not None})
            letters = len(unit.read(sql.take_dead, (flow,)))
            discarded = _counted(taken) + letters
            unit.write(sql.forget_all, [(flow,)])
            unit.write(sql.leave_all_alone, [(flow,)])
            if discarded:
                unit.count({flow: Tally(dead=-letters, discarded=discarded)})
            unit.commit()
        return Settled(discarded=discarded)

    def move(self, flow: str, heir: str) -> Settled:
        """Rename a flow: the new name, `heir`, gets its copies, inbox, dead letters, ledger and directions. One
        transaction.

        The new name's own copies stay. If it has a copy of the same message, the flow's copy is discarded.
        """
        sql, old, theirs = self._database.sql, _addresses(flow), (heir, *_addresses(heir))
        with self._database.unit("", SECONDS) as unit:
            self._begin(unit, flow, heir)
            inherited = _counted(unit.read(sql.take_inherited_messages, (*old, *theirs, flow)))
            dead = len(unit.read(sql.take_inherited_dead, (flow, *theirs)))
            unit.write(sql.forget_inherited, [(flow, *theirs)])
            moved = _counted(unit.read(sql.rename_messages, (heir, *old)))
            letters = len(unit.read(sql.rename_dead, (heir, flow)))
            unit.write(sql.rename_inbox, [(heir, flow)])
            unit.write(sql.rename_directions, [(heir, flow, heir)])
            unit.write(sql.leave_all_alone, [(flow,)])
            totals = Tally(*map(sum, zip(*unit.read(sql.take_counters, (flow,)), strict=True)))
            unit.count({heir: totals._replace(dead=totals.dead - dead, discarded=totals.discarded + inherited + dead)})
            unit.commit()
        self._database.notify([heir])
        return Settled(moved, letters, inherited + dead)

    def _begin(self, unit: SqlUnit, flow: str, heir: str) -> None:
        """Begin a transaction during which no message is sent or ends, and after which the flow receives nothing."""
        unit.begin()
        if self._database.sql.hold_counters:
            unit.write(self._database.sql.hold_counters, [()])
        self._unsubscribe(unit, flow, heir)

    def _unsubscribe(self, unit: SqlUnit, flow: str, heir: str) -> None:
        if heir:
            unit.write(self._database.sql.rename_subscription, [(heir, flow, heir)])
        unit.write(self._database.sql.unsubscribe, [_addresses(flow)])

    def _refuse_holders(self, flow: str, workers: Collection[str]) -> None:
        """Raise ConfigError if one of these workers lives."""
        living = [one for one in sorted(workers) if not self._fleet.is_gone(one)]
        if living:
            raise ConfigError(
                f"messages of flow {flow} are in flight in worker {living[0]}; stop the instances that run this flow, "
                "and run this again"
            )


def _addresses(flow: str) -> tuple[str, str]:
    """Return the addresses of a flow's copies: the flow itself, and its candidate."""
    return flow, flow + CANDIDATE


def _counted(rows: Sequence[Any]) -> int:
    """Return the number of messages that the ledger counts for these rows: a message with two copies once, an ended or
    unreadable message not at all."""
    return len({(source, id) for source, id, ended, *_ in rows if not ended and source != UNREAD})
