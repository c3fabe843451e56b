"""`flowkit status` and `flowkit audit`: the state of the store."""

from collections.abc import Mapping

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.opened import unchecked_services
from flowkit.operations import audit as auditing
from flowkit.operations import overview
from flowkit.operations.audit import Audit, difference
from flowkit.operations.overview import FlowState, Overview
from flowkit.operations.store import operated
from flowkit.plain import plain
from flowkit.ports import DIRECTIONS, DRAINED, NORMAL, PAUSED
from flowkit.store.ledger import WorkerRow

FAR_SECONDS = 0.01
"""Above this latency in seconds, an instance is probably at another site than its store or broker."""

IN_FLIGHT = ", or it is in flight: messages in flight are not counted, so try again when none is"
NAMES = ("accepted", "applied", "dead", "discarded", "expired", "pending")
"""The terms of the ledger."""


def status(json: bool) -> None:
    """Print workers, backlog and ledger."""
    with unchecked_services() as services:
        broker = bool(services.settings.broker_url)
        found = overview.look(operated(services.store), services.transport, broker)
    if json:
        show.as_json(_as_json(found))
        return
    show.table(
        "Workers",
        ["id", "app", "version", "group", "site", "host", "pid", "state", "up", "heartbeat"],
        [_cells(one) for one in found.workers],
    )
    for app, standing in found.active.items():
        how = f"for {standing.seconds:.1f} s more" if standing.seconds > 0 else "but silent; a spare takes over"
        print(f"app {plain(app)}: group {plain(standing.group)} is active {how}")
    for name, seconds in found.latencies.items():
        far = "; instances with this latency are slow: give them a site of their own" if seconds > FAR_SECONDS else ""
        print(f"the {name} answers in {_milliseconds(seconds)}{far}")
    print()
    show.table(
        "Flows",
        ["flow", "channel", "applied", "dead", "queued", "due", "in work", "delayed", "parked", "oldest"],
        [_state(flow, one) for flow, one in found.flows.items()],
    )
    for stray in found.orphans:
        print(f"\n{stray.warning}")
    _tell_of_directions(found)
    _tell_of_others(found)


def _as_json(found: Overview) -> dict[str, object]:
    return {
        "workers": [worker._asdict() for worker in found.workers],
        "active": {app: standing._asdict() for app, standing in found.active.items()},
        "latency": found.latencies,
        "orphaned": [one.flow for one in found.orphans],
        "flows": {
            flow: {
                "channel": one.channel,
                **one.directed,
                **one.balance._asdict(),
                "backlog": one.rows._asdict() if one.rows is not None else None,
                "queued": one.queued,
            }
            for flow, one in found.flows.items()
        },
        "shared": {channel: rows._asdict() for channel, rows in found.shared.items()},
    }


def _state(flow: str, one: FlowState) -> tuple[object, ...]:
    """The cells of a flow, in the order of the table."""
    waiting = one.rows[:4] if one.rows is not None else (0, 0, 0, 0)
    oldest = duration.ago(one.rows.oldest if one.rows is not None else None)
    return (flow, one.channel, one.balance.applied, one.balance.dead, one.queued, *waiting, oldest)


def _tell_of_directions(found: Overview) -> None:
    """Print each direction of the fleet, and the command that ends it."""
    for (what, name), value in sorted(found.directions.items()):
        if what == NORMAL:
            ready = found.ready(name)
            level = "full" if ready >= value else "reduced"
            print(
                f"\n{plain(name)}: {level} service, by {ready} ready workers of {value}; "
                f"flowkit sla apply {plain(name)} --off ends that"
            )
        if what not in DIRECTIONS:
            continue
        how = "" if what in (PAUSED, DRAINED) else f" {value}"
        print(f"\n{plain(name)}: {what}{how}; flowkit resume {plain(name)} ends that")


def _milliseconds(seconds: float) -> str:
    """A latency in ms as text; a short one is not rounded to 0."""
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else "less than 0.1 ms"


def _cells(one: WorkerRow) -> tuple[str, ...]:
    """The cells of a worker, in the order of the table."""
    who = (one.id, one.app, one.version, one.group, one.site, one.host, str(one.pid), one.state)
    return (*who, duration.ago(one.started), duration.ago(one.silent))


def _tell_of_others(found: Overview) -> None:
    """Print the messages on their way to other programs, and foreign messages without an id, or with a known one."""
    for channel, rows in found.shared.items():
        waiting = f"{rows.due + rows.leased + rows.delayed + rows.parked:,} message(s) for other programs wait"
        print(f"\nshared channel {plain(channel)}: {waiting}, {rows.parked:,} of them parked")
    for flow, one in found.flows.items():
        balance = one.balance
        if balance.unidentified:
            print(f"\n{plain(flow)}: {balance.unidentified:,} message(s) came without an id; see id_from=")
        if balance.reused:
            told = "came with another body under an id that was known; the log names them"
            print(f"\n{plain(flow)}: {balance.reused:,} message(s) {told}; see id_from=")


def audit(json: bool) -> int:
    """Print the ledger. Returns 1 if it does not balance."""
    with unchecked_services() as services:
        broker = bool(services.settings.broker_url or services.settings.drain_url)
        found = auditing.audit(operated(services.store), services.transport, broker)
    if json:
        show.as_json(_audited(found))
    else:
        rows = [
            (flow, *(getattr(one, name) for name in NAMES), "yes" if one.balanced else "NO")
            for flow, one in found.balances.items()
        ]
        show.table("Ledger", ["flow", *NAMES, "balanced"], rows)
        for flow, balance in found.balances.items():
            if not balance.balanced:
                print(f"\n{plain(flow)}: {difference(balance)}", end="")
        why = f"a message was lost or counted twice{IN_FLIGHT if broker else ''}; keep the database as it is"
        for stray in found.orphans:
            print(f"\n{stray.warning}")
        print("\nbalanced" if found.balanced else f"\nNOT balanced: {why}")
    return 0 if found.balanced else 1


def _audited(found: Audit) -> Mapping[str, object]:
    flows = {
        flow: {"balanced": one.balanced, **{name: getattr(one, name) for name in NAMES}}
        for flow, one in found.balances.items()
    }
    totals = {name: sum(getattr(one, name) for one in found.balances.values()) for name in NAMES}
    orphaned = [one.flow for one in found.orphans]
    return {"balanced": found.balanced, **totals, "orphaned": orphaned, "flows": flows}
