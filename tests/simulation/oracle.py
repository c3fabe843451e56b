"""The oracle: the conditions that must hold when a run is at rest, after any faults."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import from_json

from flowkit import App
from flowkit.ports import CANDIDATE
from flowkit.store.sql import SqlStore
from flowkit.store.sqlite import SqliteDialect
from tests.simulation.shop import HOT, Deeds, Order, dies, expected, fails
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.fleet import Machine
    from tests.simulation.outside import Client

DONE, DEAD = 1, 2


def open_store(world: World, path: Path) -> SqlStore:
    """A look at the database from outside of the world: nothing breaks here."""
    return SqlStore(SqliteDialect(str(path), world), world)


def at_rest(machine: "Machine", store: SqlStore, app: App) -> bool:
    """Whether nothing is left to be done: no rows, nothing at the broker, nothing unacknowledged."""
    if machine.broker and any(machine.broker.depth(flow) for flow in _addresses(app)):
        return False
    with store.unit("") as unit:
        return not unit.read("SELECT 1 FROM flowkit_messages LIMIT 1")


def left(machine: "Machine", store: SqlStore, app: App) -> str:
    """What is still to be done."""
    with store.unit("") as unit:
        rows = unit.read("SELECT flow, id, generation, deliveries, due / 1e6, worker, parked FROM flowkit_messages")
        inbox = unit.read("SELECT flow, id, generation, attempts, suspect FROM flowkit_inbox WHERE state = 0")
    depths = {flow: machine.broker.depth(flow) for flow in _addresses(app)} if machine.broker else {}
    now = store.now()
    waiting = [(*row[:4], round(row[4] - now, 1), *row[5:]) for row in rows]
    return f"rows: {waiting}; open: {inbox}; broker: {depths}"


def _addresses(app: App) -> list[str]:
    """Where messages of the app may be."""
    return [*app.flows, *(flow + CANDIDATE for flow in app.flows)]


def letters_to_mend(store: SqlStore) -> list[str]:
    """The dead letters of what failed until somebody mended it."""
    letters = store.dead_letters.read(store.dead_letters.select())
    return [one.letter for one in letters if '"mend"' in str(one.message.body)]


def unlucky(deeds: Deeds) -> set[tuple[str, str]]:
    """The messages (flow, id) some of whose attempts ended with their process."""
    late = {(flow, id) for flow, _, id in +deeds.charges}
    return late | {(identity[0], identity[2]) for identity in deeds.solos if deeds.killed(identity)}


def check(
    machine: "Machine", store: SqlStore, app: App, clients: "Sequence[Client]", orders: Sequence[Order], deeds: Deeds
) -> None:
    """Raise AssertionError for what was lost, applied twice, invented, or counted wrongly."""
    with store.unit("") as unit:
        effects = Counter(
            {name: int(count) for name, count in unit.read("SELECT name, count(*) FROM effects GROUP BY name")}
        )
        rows = unit.read("SELECT flow, source, id, state, attempts, changed / 1e6 FROM flowkit_inbox")
        inbox = {(flow, id): state for flow, _, id, state, *_ in rows}
        since = {id: changed for flow, _, id, *_, changed in rows if flow == "channel:orders"}
        staged = {row for (row,) in unit.read("SELECT copy FROM staged")}
        (hot,) = unit.read("SELECT count FROM hot")[0]
        integrity = unit.read("PRAGMA integrity_check")
        objects = {key: from_json(value) for key, value in unit.read("SELECT key, value FROM flowkit_objects")}
        replies = Counter(f"note {from_json(reply)}" for (reply,) in unit.read("SELECT reply FROM flowkit_replies"))
    letters = {(one.flow, one.message.id): one.reason for one in store.dead_letters.read(store.dead_letters.select())}
    log = {name: said for client in clients for name, said in client.log.items()}

    accepted = [order for order in orders if ("channel:orders", order.name) in inbox]
    for order in orders:
        said = log.get(order.name)
        assert said is not None, f"{order.name} was never published"
        if said == "ok":
            assert order in accepted, f"{order.name} was accepted, and the store does not know it: lost"
    early = [name for client in clients for name, told in client.refused.items() if since.get(name, told) < told]
    early = early if not machine.world.settings else []  # the two times are not of one clock
    assert not early, f"accepted, though the client was told that they were not: {early}"
    swallowed = [name for client in clients for name in client.swallowed]
    assert not swallowed, f"another body was accepted under a name that was known: {swallowed}"
    if machine.broker:
        published = set(machine.broker.published)
        assert published <= staged, f"published, and never committed: {published - staged}"
        assert published >= staged, f"committed, and never published: {staged - published}"
    wanted = Counter(effect for order in accepted for effect in expected(order))
    lost, twice = wanted - effects, effects - wanted
    assert not lost, f"lost: {sorted(lost)}"
    assert not twice, f"applied twice, or though it failed: {sorted(twice)}"
    count = sum(order.deed == "hot" for order in accepted)
    assert hot == count, f"the hot row says {hot}, of {count}"
    counted = objects.pop(HOT, 0)
    assert counted == 2 * count, f"the hot object says {counted}, of {2 * count}"
    assert objects.keys() == {f"invoice {order.name}" for order in accepted if not dies(order)}, (
        "objects differ from effects"
    )
    noted = Counter({name: count for name, count in effects.items() if name.startswith("note ")})
    assert replies == noted, "replies differ from effects"

    dead = {("sim.accept", order.name): dies(order) for order in accepted if dies(order)}
    for identity, letter in letters.items():
        if letter == "crashed" and dead.get(identity) == "failed" and identity in unlucky(deeds):
            dead[identity] = "crashed"  # its last attempt was none of its own
    assert letters == dead, f"dead letters: {letters}, expected: {dead}"
    for order in accepted:
        for flow in ("sim.accept", "sim.audit"):
            state = DEAD if (flow, order.name) in dead else DONE
            assert inbox.get((flow, order.name)) == state, (
                f"inbox of {flow}, {order.name}: {inbox.get((flow, order.name))}"
            )
    named = {order.name: order for order in orders}
    for flow, source, id, _, attempts, _ in rows:
        allowed = (fails(named[id]) if id in named else 0) + deeds.charges[flow, source, id]
        allowed += deeds.killed((flow, source, id))
        assert attempts <= allowed, f"{flow}, {id} has {attempts} attempts, and {allowed} were its own"
    forked = [one for one, count in deeds.ends.items() if count > 1]
    assert not forked, f"one generation came to several outcomes: {forked}"
    assert not [key for key, state in inbox.items() if state not in (DONE, DEAD)], "open inbox rows"
    for flow, balance in store.ledger.balances().items():
        assert balance.balanced, f"{flow}: {balance}"
        assert balance.pending == 0, f"{flow}: {balance}"
        assert balance.dead == sum(one == flow for one, _ in dead), f"{flow}: {balance}"
    assert integrity == [("ok",)], integrity
