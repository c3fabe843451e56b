"""Pending: the messages that are not at their end, in the rows of the store and at the broker.

Everything that counts them asks here. A broker does not count what workers have received from it: those messages are in
the ledger only. Every function blocks, and raises StoreUnavailable or BrokerUnavailable.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from flowkit.ports import EXCHANGE, Pending, Store, Transport
from flowkit.store.ledger import Backlog, Balance, Ledger


class Waiting(NamedTuple):
    """What waits, by flow."""

    rows: Mapping[str, Backlog]
    """In the store, also for other programs, under EXCHANGE and their channel. A flow without rows has no entry."""
    queued: Mapping[str, int]
    """At the broker."""

    def many(self, flow: str) -> int:
        """How many messages of a flow wait, wherever they are."""
        return self.queued.get(flow, 0) + (sum(self.rows[flow][:4]) if flow in self.rows else 0)

    @property
    def shared(self) -> dict[str, Backlog]:
        """What waits for other programs, by their channel."""
        return {flow.removeprefix(EXCHANGE): one for flow, one in self.rows.items() if flow.startswith(EXCHANGE)}


def waiting(ledger: Ledger, transport: Transport, flows: Collection[str]) -> Waiting:
    """What waits for these flows at the broker, and for all in the rows."""
    return Waiting(ledger.backlog(), queued(transport, flows))


def queued(transport: Transport, flows: Collection[str]) -> Mapping[str, int]:
    """How many messages wait for these flows at the broker; nothing waits there for other programs."""
    return transport.depths([one for one in flows if one and not one.startswith(EXCHANGE)])


def balances(ledger: Ledger, transport: Transport) -> dict[str, Balance]:
    """The ledger of each flow. What the broker holds is pending too."""
    found = ledger.balances()
    depths = queued(transport, found)
    return {flow: one._replace(pending=one.pending + depths.get(flow, 0)) for flow, one in found.items()}


def ready(store: Store, transport: Transport, flows: Collection[str]) -> int:
    """How many messages of these flows wait for nothing but a worker, or are at work: what a larger fleet would do."""
    return store.pending(flows).now + sum(queued(transport, flows).values())


def left(store: Store, transport: Transport, flows: Collection[str], broker: bool) -> Pending:
    """What these flows still have to do: what is due or in work, also on its way to other programs, and what waits for
    a later time. `broker`: messages are at a broker too. The ledger knows of those that were sent here, and the queues
    of those that other programs sent."""
    now, later = store.pending(flows)
    if broker:
        now = max(store.unfinished(flows) - later, sum(queued(transport, flows).values()))
    if transport.lease:
        now += store.pending([flow for flow in store.subscriptions() if flow.startswith(EXCHANGE)]).now
    return Pending(now, later)
