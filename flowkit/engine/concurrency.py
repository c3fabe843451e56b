"""The number of `async def` handlers of a lane that run at the same time."""

from collections import Counter
from collections.abc import Collection, Sequence
from logging import Logger

from flowkit.engine.item import Item
from flowkit.engine.triage import SOLO_TRIES
from flowkit.ports import Identity


class Concurrency:
    """Limits how many handlers of a lane run at the same time: fewer while they change objects that others have read.

    Of handlers that read and write the same object, one commits and the others run again.
    """

    def __init__(self, flow: str, most: int, log: Logger) -> None:
        """`most`: the limit while no handler runs again."""
        self.limit = most
        """How many handlers may run at the same time now."""
        self._flow = flow
        self._most = most
        self._log = log
        self._stale: Counter[Identity] = Counter()
        """How often a message ran in vain, because an object had changed since its handler read it."""

    def adapt(self, running: int, items: Sequence[Item], stale: Collection[Item]) -> None:
        """Learn from items that ended while `running` handlers ran. Those of them that are `stale` run again: the limit
        falls by their number. When none is, the limit rises by one."""
        at_once = running + len(items)
        self.limit = max(1, min(self.limit, at_once) - len(stale)) if stale else min(self._most, self.limit + 1)
        for ended in (item for item in items if self._stale and item.outcome is not None):
            self._stale.pop(ended.delivery.identity, None)
        for identity in (item.delivery.identity for item in stale):
            self._stale[identity] += 1
            if self._stale[identity] % SOLO_TRIES == 0:
                self._log.warning(
                    "flow %s: message %s has run %d times for nothing: each time another one changed an object between "
                    "its get and its commit; shorten that time, or keep less under one key",
                    self._flow, identity[2], self._stale[identity],
                )  # fmt: skip
