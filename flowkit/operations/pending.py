"""Pending: the messages that are not at their end, in the rows of the store and at the broker.

Everything that counts them asks here, where the broker is asked too. A broker does not count the messages that workers
have received from it: the ledger alone does (`unfinished`). Every function blocks, and raises StoreUnavailable or
BrokerUnavailable.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from flowkit.ports import EXCHANGE, Pending, Store, Transport
from flowkit.store.ledger import Backlog, Balance, Ledger


class Waiting(NamedTuple):
    """Messages that wait, by flow."""

    rows: Mapping[str, Backlog]
    """In the store, also for other programs, under EXCHANGE and their channel. A flow without rows has no entry."""
    queued: Mapping[str, int]
    """At the broker."""

    def many(self, flow: str) -> int:
        """Count the messages of a flow, wherever they wait."""
        return self.queued.get(flow, 0) + (sum(self.rows[flow][:4]) if flow in self.rows else 0)

    @property
    def shared(self) -> dict[str, Backlog]:
        """Messages that wait for other programs, by channel."""
        return {flow.removeprefix(EXCHANGE): one for flow, one in self.rows.items() if flow.startswith(EXCHANGE)}


def waiting(ledger: Ledger, transport: Transport, flows: Collection[str]) -> Waiting:
    """Read the rows of all flows, and the queues of these at the broker."""
    return Waiting(ledger.backlog(), queued(transport, flows))


def queued(transport: Transport, flows: Collection[str]) -> Mapping[str, int]:
    """Count the messages of these flows at the broker. Nothing waits there for other programs."""
    return transport.depths([one for one in flows if one and not one.startswith(EXCHANGE)])


def balances(ledger: Ledger, transport: Transport) -> dict[str, Balance]:
    """The ledger of each flow. What the broker holds is pending too."""
    found = ledger.balances()
    depths = queued(transport, found)
    return {flow: one._replace(pending=one.pending + depths.get(flow, 0)) for flow, one in found.items()}


def ready(store: Store, transport: Transport, flows: Collection[str]) -> int:
    """Count the messages of these flows that are due or at work: a larger fleet would be done with them sooner."""
    return store.ledger.pending(flows).now + sum(queued(transport, flows).values())


def left(store: Store, transport: Transport, flows: Collection[str], broker: bool) -> Pending:
    """Count the messages that these flows still have: due or in work, also on their way to other programs, and waiting
    for a later time. `broker`: messages are at a broker too. The ledger counts those that this store sent there,
    and the queues count those of other programs."""
    now, later = store.ledger.pending(flows)
    if broker:
        now = max(store.ledger.unfinished(flows) - later, sum(queued(transport, flows).values()))
    if transport.hops:
        now += store.ledger.pending([flow for flow in store.subscribers.channels() if flow.startswith(EXCHANGE)]).now
    return Pending(now, later)
