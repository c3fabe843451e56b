"""The flows that are subscribed, the apps that only publish, and the end of flows that no program has any more."""

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
"""The name in the inbox, no flow's and no channel's, under which apps without flows are announced."""
SECONDS = 600.0
"""The deadline of a transaction that removes or renames all of a flow."""
TOGETHER_SECONDS = 5.0
"""A program records all its flows in one transaction, so their times differ by less than this."""


class Subscriber(NamedTuple):
    """A flow that is subscribed. `silent` is in seconds since a program that has it started."""

    flow: str
    channel: str
    silent: float

    @property
    def app(self) -> str:
        return self.flow.split(".", 1)[0]


class Settled(NamedTuple):
    """The end of a flow: copies and dead letters that its heir has now, and those that were discarded."""

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
        """flow -> channel, of every app."""
        with self._database.unit("") as unit:
            return dict(unit.read("SELECT flow, channel FROM flowkit_subscriptions WHERE channel <> '' ORDER BY flow"))

    def announce(self, app: str) -> None:
        # In the inbox, where whoever publishes may write, the name is claimed like an id.
        with self._database.transaction(fenced=False) as unit:
            unit.claim([Delivery(Message("", app, "", b""), PUBLISHERS)])

    def publishers(self) -> list[str]:
        with self._database.unit("") as unit:
            return [app for (app,) in unit.read(f"SELECT source FROM flowkit_inbox WHERE flow = '{PUBLISHERS}'")]

    def read(self) -> list[Subscriber]:
        """All subscriptions, by flow."""
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.subscribed)
        return [Subscriber(flow, channel, age / MICROSECOND) for flow, channel, age in rows]

    def orphans(self) -> list[Subscriber]:
        """Those that the program of their app that started last does not have."""
        found = [one for one in self.read() if not one.flow.startswith(EXCHANGE)]
        latest: dict[str, float] = {}
        for one in found:
            latest[one.app] = min(one.silent, latest.get(one.app, one.silent))
        return [one for one in found if one.silent > latest[one.app] + TOGETHER_SECONDS]

    def keep(self, flow: str, deliveries: Sequence[Delivery], heir: str = "") -> None:
        """Make message rows of what waited for a flow elsewhere, and dead letters of what was refused; of what took
        effect, none. One transaction.

        From here on nothing more comes to the flow, and no relay sends these rows there again. An heir that is not
        subscribed yet has its channel.
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
        """Remove a flow, and discard what waits for it and its dead letters; its ledger stays. One transaction.

        Raises ConfigError, and changes nothing, while a worker has messages of it in hand.
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
        """Rename a flow: what waits for it, its inbox, dead letters, ledger and directions are its heir's. One
        transaction.

        The heir's own copies stay as they are: where it has one of the same message, that of the flow is discarded.
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
        """From here on nothing is sent or ended until the transaction's end, and nothing comes to the flow after it."""
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
                f"worker {living[0]} has messages of flow {flow} in hand; stop the instances that run this flow, and "
                "ask again"
            )


def _addresses(flow: str) -> tuple[str, str]:
    """Where the copies of a flow are addressed to."""
    return flow, flow + CANDIDATE


def _counted(rows: Sequence[Any]) -> int:
    """How many messages these rows are in the ledger: it counts one that was sent twice once, and not what is at its
    end, nor what nobody could read yet."""
    return len({(source, id) for source, id, ended, *_ in rows if not ended and source != UNREAD})
