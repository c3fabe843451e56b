"""Audit: the ledger of each flow, and whether it balances."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowkit.operations import pending
from flowkit.operations.store import OperatedStore
from flowkit.operations.subscriptions import Known, known
from flowkit.ports import Transport
from flowkit.store.ledger import Balance

COUNTS, COUNT_SECONDS = 20, 0.5
"""The ledger is counted again at most COUNTS times, with a pause of COUNT_SECONDS."""


class Audit(NamedTuple):
    """The ledger of each flow, with the messages queued at the broker."""

    balances: Mapping[str, Balance]
    orphans: Sequence[Known]
    """Subscribed flows that are in no app any more."""

    @property
    def balanced(self) -> bool:
        return all(one.balanced for one in self.balances.values())


def audit(store: OperatedStore, transport: Transport, broker: bool) -> Audit:
    """Count the messages of each flow. `broker`: messages are at a broker too, so counting may take several rounds.
    Blocks. Raises StoreUnavailable and BrokerUnavailable."""
    balances = _at_rest(store, transport) if broker else _counted(store, transport)
    return Audit(balances, [one for one in known(store, transport) if one.orphaned])


def difference(one: Balance) -> str:
    """A sentence that names the terms of a flow's ledger that do not add up; empty if all do."""
    found = one.ended + one.pending
    faults = []
    if one.accepted != found:
        faults.append(f"{one.accepted:,} were accepted, and {found:,} are accounted for")
    if one.dead != one.letters:
        faults.append(f"{one.dead:,} are counted dead, and there are {one.letters:,} dead letters")
    return "; ".join(faults)


def _counted(store: OperatedStore, transport: Transport) -> dict[str, Balance]:
    """The balance of each flow, without the store's own entries."""
    return {flow: one for flow, one in pending.balances(store.ledger, transport).items() if flow}


def _at_rest(store: OperatedStore, transport: Transport) -> dict[str, Balance]:
    """The balance of each flow, counted again while a flow does not balance and counts change, at most COUNTS times:
    database and broker are not counted at one moment."""
    found = _counted(store, transport)
    for _ in range(COUNTS):
        if all(one.balanced for one in found.values()):
            break
        time.sleep(COUNT_SECONDS)
        before, found = found, _counted(store, transport)
        if found == before:
            break
    return found
