"""`flowkit status` and `flowkit audit`: the state of the store."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flowkit.cli import show
from flowkit.cli.plain import plain
from flowkit.cli.subscriptions import Known, known
from flowkit.config import Settings, open_store, open_transport
from flowkit.ports import DIRECTIONS, DRAINED, EXCHANGE, NORMAL, PAUSED

FAR_SECONDS = 0.01
"""What is further away from its store or its broker is at another site."""

COUNTS, COUNT_SECONDS = 20, 0.5
IN_HAND = ", or workers have it in hand: what they have is not counted, so ask again when nothing is at work"


def status(json: bool) -> None:
    """Workers, backlog and ledger."""
    settings = Settings.read()
    store = open_store(settings, create=False)
    try:
        workers, backlog, balances = store.ledger.workers(), store.ledger.backlog(), store.ledger.balances()
        subscribed, directions = store.subscribers.channels(), store.directions.read()
        standings = {app: store.groups.standing(app) for app in sorted({one.app for one in workers})}
        latencies = {"store": _least(store.now)}
        transport = open_transport(settings, store)
        try:
            queued = transport.depths(mine := [one for one in subscribed if not one.startswith(EXCHANGE)])
            strays = [one for one in known(store, transport) if one.orphaned]
            if settings.broker_url and mine:
                latencies["broker"] = _least(lambda: transport.depths(mine[:1]))
        finally:
            transport.close()
    finally:
        store.close()
    gone = {flow for flow, one in balances.items() if flow not in subscribed and not (flow in backlog or one.letters)}
    balances = {flow: one for flow, one in balances.items() if flow not in gone}
    if json:
        show.as_json(
            {
                "workers": [worker._asdict() for worker in workers],
                "active": {
                    app: standing._asdict() for app, standing in standings.items() if standing and standing.group
                },
                "latency": latencies,
                "orphaned": [one.flow for one in strays],
                "flows": {
                    flow: {
                        "channel": subscribed.get(flow),
                        **{what: _directed(directions, what, flow) for what in DIRECTIONS},
                        **balance._asdict(),
                        "backlog": backlog[flow]._asdict() if flow in backlog else None,
                        "queued": queued.get(flow, 0),
                    }
                    for flow, balance in _owned(balances).items()
                },
                "shared": {
                    flow.removeprefix(EXCHANGE): rows._asdict()
                    for flow, rows in backlog.items()
                    if flow.startswith(EXCHANGE)
                },
            }
        )
        return
    show.table(
        "Workers",
        ["id", "app", "version", "group", "site", "host", "pid", "state", "up", "heartbeat"],
        [_cells(one) for one in workers],
    )
    for app, standing in standings.items():
        if standing is not None and standing.group:
            how = f"for {standing.seconds:.1f} s more" if standing.seconds > 0 else "but silent; a spare takes over"
            print(f"app {plain(app)}: group {plain(standing.group)} is active {how}")
    for name, seconds in latencies.items():
        far = "; instances so far from it are slow, and belong to a site of their own" if seconds > FAR_SECONDS else ""
        print(f"the {name} answers in {_milliseconds(seconds)}{far}")
    print()
    show.table(
        "Flows",
        ["flow", "channel", "applied", "dead", "queued", "due", "in work", "delayed", "parked", "oldest"],
        [
            (
                flow,
                subscribed.get(flow),
                balance.applied,
                balance.dead,
                queued.get(flow, 0),
                *(backlog[flow][:4] if flow in backlog else (0, 0, 0, 0)),
                show.ago(backlog[flow].oldest if flow in backlog else None),
            )
            for flow, balance in _owned(balances).items()
        ],
    )
    for one in strays:
        print(f"\n{one.warning}")
    for (what, name), value in sorted(directions.items()):
        if what == NORMAL:
            ready = sum(one.app == name and one.state == "ready" for one in workers)
            level = "full" if ready >= value else "reduced"
            print(
                f"\n{plain(name)}: {level} service, by {ready} ready workers of {value}; "
                f"flowkit sla apply {plain(name)} --off ends that"
            )
        if what not in DIRECTIONS:
            continue
        how = "" if what in (PAUSED, DRAINED) else f" {value}"
        print(f"\n{plain(name)}: {what}{how}; flowkit resume {plain(name)} ends that")
    _tell_of_others(balances, backlog)


def _milliseconds(seconds: float) -> str:
    """A latency, for people: none is 0."""
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else "less than 0.1 ms"


def _directed(directions: Mapping[tuple[str, str], int], what: str, flow: str) -> int | None:
    """What is set of a flow, or of its app."""
    return directions.get((what, flow), directions.get((what, flow.split(".", 1)[0])))


def _cells(one: Any) -> tuple[str, ...]:
    """A worker, in the order of the table."""
    who = (one.id, one.app, one.version, one.group, one.site, one.host, str(one.pid), one.state)
    return (*who, show.ago(one.started), show.ago(one.silent))


def _least(ask: Callable[[], object]) -> float:
    """Seconds of the quickest of some answers."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _tell_of_others(balances: Mapping[str, Any], backlog: Mapping[str, Any]) -> None:
    """What is on its way to other programs, and what came from them without an id, or under another one's."""
    for flow, rows in backlog.items():
        if flow.startswith(EXCHANGE):
            waiting = f"{rows.due + rows.leased + rows.delayed + rows.parked:,} message(s) for other programs wait"
            print(f"\nshared channel {plain(flow.removeprefix(EXCHANGE))}: {waiting}, {rows.parked:,} of them parked")
    for flow, balance in balances.items():
        if balance.unidentified:
            print(f"\n{plain(flow)}: {balance.unidentified:,} message(s) came without an id; see id_from=")
        if balance.reused:
            told = "came with another body under an id that was known; the log names them"
            print(f"\n{plain(flow)}: {balance.reused:,} message(s) {told}; see id_from=")


def audit(json: bool) -> int:
    """The ledger. Returns 1 when it does not balance."""
    settings = Settings.read()
    broker = bool(settings.broker_url or settings.drain_url)
    store = open_store(settings, create=False)
    try:
        balances = _at_rest(settings, store) if broker else _counted(settings, store)
        strays = _strays(settings, store)
    finally:
        store.close()
    names = ("accepted", "applied", "dead", "discarded", "expired", "pending")
    balanced = all(one.balanced for one in balances.values())
    if json:
        flows = {
            flow: {"balanced": one.balanced, **{name: getattr(one, name) for name in names}}
            for flow, one in balances.items()
        }
        totals = {name: sum(getattr(one, name) for one in balances.values()) for name in names}
        orphaned = [one.flow for one in strays]
        show.as_json({"balanced": balanced, **totals, "orphaned": orphaned, "flows": flows})
    else:
        rows = [
            (flow, *(getattr(one, name) for name in names), "yes" if one.balanced else "NO")
            for flow, one in balances.items()
        ]
        show.table("Ledger", ["flow", *names, "balanced"], rows)
        for flow, one in balances.items():
            if not one.balanced:
                print(f"\n{plain(flow)}: {_difference(one)}", end="")
        why = f"a message was lost or counted twice{IN_HAND if broker else ''}; keep the database as it is"
        for one in strays:
            print(f"\n{one.warning}")
        print("\nbalanced" if balanced else f"\nNOT balanced: {why}")
    return 0 if balanced else 1


def _counted(settings: Settings, store: Any) -> dict[str, Any]:
    """The balance of each flow, with what waits at the broker."""
    balances = _owned(store.ledger.balances())
    queued = _queued(settings, store, balances)
    return {flow: one._replace(pending=one.pending + queued.get(flow, 0)) for flow, one in balances.items()}


def _at_rest(settings: Settings, store: Any) -> dict[str, Any]:
    """The same, counted again as long as it does not balance and something moves, at most so many times: database and
    broker are not counted at one moment."""
    found = _counted(settings, store)
    for _ in range(COUNTS):
        if all(one.balanced for one in found.values()):
            break
        time.sleep(COUNT_SECONDS)
        before, found = found, _counted(settings, store)
        if found == before:
            break
    return found


def _strays(settings: Settings, store: Any) -> list[Known]:
    """The flows that no app has any more."""
    transport = open_transport(settings, store)
    try:
        return [one for one in known(store, transport) if one.orphaned]
    finally:
        transport.close()


def _queued(settings: Settings, store: Any, flows: Collection[str]) -> Mapping[str, int]:
    """What waits at the broker, if there is one. What workers have in hand is neither there nor in the rows."""
    transport = open_transport(settings, store)
    try:
        return transport.depths([one for one in flows if not one.startswith(EXCHANGE)])
    finally:
        transport.close()


def _difference(one: Any) -> str:
    """What does not add up in a flow."""
    found = one.applied + one.dead + one.discarded + one.expired + one.pending
    faults = []
    if one.accepted != found:
        faults.append(f"{one.accepted:,} were accepted, and {found:,} are accounted for")
    if one.dead != one.letters:
        faults.append(f"{one.dead:,} are counted dead, and there are {one.letters:,} dead letters")
    return "; ".join(faults)


def _owned(balances: dict[str, Any]) -> dict[str, Any]:
    """The flows, without the store's own entries."""
    return {flow: one for flow, one in balances.items() if flow}
