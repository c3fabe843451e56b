"""Overview: the workers, the flows, and the pending messages of each flow."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flowkit.operations import pending
from flowkit.operations.store import OperatedStore
from flowkit.operations.subscriptions import Known, known
from flowkit.ports import DIRECTIONS, EXCHANGE, Standing, Transport
from flowkit.store.ledger import Backlog, Balance, WorkerRow

LOOKS = 5
"""A service is asked this many times; the fastest answer is its latency."""


class FlowState(NamedTuple):
    """A flow: its channel, its directions, its ledger and its backlog."""

    channel: str | None
    """None if the flow is not subscribed."""
    directed: Mapping[str, int | None]
    """Direction, one of DIRECTIONS -> its value for the flow, or else for its app; None if it is not set."""
    balance: Balance
    rows: Backlog | None
    """Its messages in the store; None if there are none."""
    queued: int
    """Messages at the broker."""


class Overview(NamedTuple):
    """The state of a store."""

    workers: Sequence[WorkerRow]
    active: Mapping[str, Standing]
    """App -> its active group. Apps without groups have no entry."""
    latencies: Mapping[str, float]
    """`store`, and `broker` if there is one -> seconds until it answers."""
    flows: Mapping[str, FlowState]
    shared: Mapping[str, Backlog]
    """Channel -> messages on their way to other programs."""
    orphans: Sequence[Known]
    """Subscribed flows that are in no app any more."""
    directions: Mapping[tuple[str, str], int]
    """(what, name) -> value, for each direction of the fleet."""

    def ready(self, app: str) -> int:
        """Count the ready workers of an app."""
        return sum(one.app == app and one.state == "ready" for one in self.workers)


def look(store: OperatedStore, transport: Transport, broker: bool) -> Overview:
    """Read the state of a store. `broker`: measure a broker's latency too. Blocks. Raises StoreUnavailable and
    BrokerUnavailable."""
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
    """The direction of a flow, or else of its app."""
    return directions.get((what, flow), directions.get((what, flow.split(".", 1)[0])))


def _least(ask: Callable[[], object]) -> float:
    """Call `ask` LOOKS times. Returns the shortest duration in seconds."""
    taken = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return min(taken)
