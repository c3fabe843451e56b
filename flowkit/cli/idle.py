"""When nothing is left to do."""

import sys
import time
from collections.abc import Sequence

from flowkit.errors import StoreConflict, StoreUnavailable
from flowkit.ports import Store

LOOK_SECONDS = 0.2


class Idle:
    """Whether nothing of some flows is pending: seen twice in a row, because a look is not a lock."""

    def __init__(self, store: Store, flows: Sequence[str], broker: bool) -> None:
        """`broker`: messages are not only in the store's rows, so the ledger is asked for them too."""
        self._store = store
        self._broker = broker
        self._flows = flows
        self._looked = float("-inf")
        self._seen = 0
        self._told = False

    def reached(self) -> bool:
        """Look, if it is time to. While the store is away the answer is no: the workers wait for it too."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        try:
            now_pending, later = self._store.pending(self._flows)
            if self._broker:
                now_pending = self._store.unfinished(self._flows) - later
        except (StoreUnavailable, StoreConflict):
            self._seen = 0
            return False
        if later and not now_pending and not self._told:
            self._told = True
            print(f"flowkit: only delayed messages and retries are left; waiting for {later}", file=sys.stderr)
        self._seen = 0 if now_pending or later else self._seen + 1
        return self._seen >= 2
