"""Pending: the messages that have not finished, in the rows of the store and at the broker.

All code that counts pending messages calls this module, so that none forgets the broker. A broker does not count the
messages that workers have received from it; only the ledger does (`unfinished`). Every function that takes a store,
ledger or transport blocks, and raises StoreUnavailable or BrokerUnavailable.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from flowkit.ports import EXCHANGE, Pending, Store, Transport
from flowkit.store.ledger import Backlog, Balance, Ledger


class Waiting(NamedTuple):
    """Pending messages, by flow."""

    rows: Mapping[str, Backlog]
    """Flow -> its messages in the store. EXCHANGE and a channel -> messages for other programs. No entry: no rows."""
    queued: Mapping[str, int]
    """Flow -> its messages at the broker."""

    def many(self, flow: str) -> int:
        """Count the messages of a flow in the store and at the broker."""
        return self.queued.get(flow, 0) + (sum(self.rows[flow][:4]) if flow in self.rows else 0)

    @property
    def shared(self) -> dict[str, Backlog]:
        """Channel -> messages that wait to be sent to other programs."""
        return {flow.removeprefix(EXCHANGE): one for flow, one in self.rows.items() if flow.startswith(EXCHANGE)}


def waiting(ledger: Ledger, transport: Transport, flows: Collection[str]) -> Waiting:
    """Read the rows of all flows, and the broker's queues of `flows`."""
    return Waiting(ledger.backlog(), queued(transport, flows))


def queued(transport: Transport, flows: Collection[str]) -> Mapping[str, int]:
    """Count the messages of these flows at the broker. Flows without a name or for other programs have no queue."""
    return transport.depths([one for one in flows if one and not one.startswith(EXCHANGE)])


def balances(ledger: Ledger, transport: Transport) -> dict[str, Balance]:
    """The ledger of each flow. Messages at the broker count as pending."""
    found = ledger.balances()
    depths = queued(transport, found)
    return {flow: one._replace(pending=one.pending + depths.get(flow, 0)) for flow, one in found.items()}


def ready(store: Store, transport: Transport, flows: Collection[str]) -> int:
    """Count the messages of these flows that are due or leased: those that a larger fleet would finish sooner."""
    return store.ledger.pending(flows).now + sum(queued(transport, flows).values())


def left(store: Store, transport: Transport, flows: Collection[str], broker: bool) -> Pending:
    """Count the pending messages of these flows. `now`: due or leased, and those on their way to other programs;
    `later`: delayed. `broker`: messages are at a broker too. The ledger counts the messages that this store sent
    there, and the queues count those of other programs."""
    now, later = store.ledger.pending(flows)
    if broker:
        now = max(store.ledger.unfinished(flows) - later, sum(queued(transport, flows).values()))
    if transport.hops:
        now += store.ledger.pending([flow for flow in store.subscribers.channels() if flow.startswith(EXCHANGE)]).now
    return Pending(now, later)
