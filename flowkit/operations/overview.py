"""Overview: the workers, the flows, and the messages that wait for each."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flowkit.operations import pending
from flowkit.operations.store import OperatedStore
from flowkit.operations.subscriptions import Known, known
from flowkit.ports import DIRECTIONS, EXCHANGE, Standing, Transport
from flowkit.store.ledger import Backlog, Balance, WorkerRow

LOOKS = 5
"""The quickest of so many answers is the latency of a service."""


class FlowState(NamedTuple):
    """A flow: where its messages come from, what became of them, and what waits."""

    channel: str | None
    """None where it is not subscribed."""
    directed: Mapping[str, int | None]
    """The value of each of the DIRECTIONS for the flow, or for its app; None where it is not set."""
    balance: Balance
    rows: Backlog | None
    """Its messages in the store; None where there are none."""
    queued: int
    """Messages at the broker."""


class Overview(NamedTuple):
    """The state of a store."""

    workers: Sequence[WorkerRow]
    active: Mapping[str, Standing]
    """app -> its active group, where it has groups."""
    latencies: Mapping[str, float]
    """Seconds in which the store answers, and the broker, where there is one."""
    flows: Mapping[str, FlowState]
    shared: Mapping[str, Backlog]
    """channel -> what is on its way to other programs."""
    orphans: Sequence[Known]
    """Flows that no app has any more."""
    directions: Mapping[tuple[str, str], int]
    """(what, name) -> value, for all that the fleet is directed to."""

    def ready(self, app: str) -> int:
        """Count the ready workers of an app."""
        return sum(one.app == app and one.state == "ready" for one in self.workers)


def look(store: OperatedStore, transport: Transport, broker: bool) -> Overview:
    """Read the state of a store. `broker`: there is one, and its latency is measured too. Blocks."""
    workers, balances = store.ledger.workers(), store.ledger.balances()
    subscribed, directions = store.subscribers.channels(), store.directions.read()
    standings = {app: store.groups.standing(app) for app in sorted({one.app for one in workers})}
    mine = [one for one in subscribed if not one.startswith(EXCHANGE)]
    latencies = {"store": _least(store.now)}
    waiting = pending.waiting(store.ledger, transport, mine)
    orphans = [one for one in known(store, transport) if one.orphaned]
    if broker and mine:
        latencies["broker"] = _least(lambda: transport.depths(mine[:1]))
    return Overview(
        workers,
        {app: standing for app, standing in standings.items() if standing is not None and standing.group},
        latencies,
        {
            flow: FlowState(
                subscribed.get(flow),
                {what: _directed(directions, what, flow) for what in DIRECTIONS},
                balance,
                waiting.rows.get(flow),
                waiting.queued.get(flow, 0),
            )
            for flow, balance in balances.items()
            if flow and (flow in subscribed or flow in waiting.rows or balance.letters)
        },
        waiting.shared,
        orphans,
        directions,
    )


def _directed(directions: Mapping[tuple[str, str], int], what: str, flow: str) -> int | None:
    """Find the direction of a flow, or of its app."""
    return directions.get((what, flow), directions.get((what, flow.split(".", 1)[0])))


def _least(ask: Callable[[], object]) -> float:
    """Seconds of the quickest of some answers."""
    taken = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return min(taken)
