"""When nothing is left to do."""

import logging
import time
from collections.abc import Sequence

from flowkit.disclosure import told
from flowkit.errors import StoreConflict, Unavailable
from flowkit.ports import EXCHANGE, Pending, Store, Transport

LOOK_SECONDS = 0.2
_log = logging.getLogger("flowkit.run")


class Idle:
    """Whether nothing of some flows is pending: seen twice in a row, because a look is not a lock."""

    def __init__(self, store: Store, transport: Transport, flows: Sequence[str], broker: bool) -> None:
        """`broker`: messages are not only in the store's rows, but at a broker too."""
        self._store = store
        self._transport = transport
        self._broker = broker
        self._flows = flows
        self._looked = float("-inf")
        self._seen = 0
        self._told = False
        self._failed = ""
        """The error of the last look."""

    def reached(self) -> bool:
        """Look, if it is time to. While a service is away the answer is no: the workers wait for it too."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        try:
            now_pending, later = self._pending()
        except Exception as error:
            if not isinstance(error, Unavailable | StoreConflict) and str(error) != self._failed:
                _log.error("cannot see what is left to do, and looks again in %g s: %s", LOOK_SECONDS, told(error))
            self._seen, self._failed = 0, str(error)
            return False
        if later and not now_pending and not self._told:
            self._told = True
            _log.warning("only delayed messages and retries are left; waiting for %d", later)
        self._seen = 0 if now_pending or later else self._seen + 1
        return self._seen >= 2

    def _pending(self) -> Pending:
        """What is due or in work, and what waits for a later time. At a broker the ledger knows of the messages, and
        the queues do of those that other programs sent."""
        store, (now, later) = self._store, self._store.ledger.pending(self._flows)
        if self._broker:
            queued = sum(self._transport.depths(self._flows).values())
            now = max(store.ledger.unfinished(self._flows) - later, queued)
        if self._transport.lease:
            now += store.ledger.pending(
                [flow for flow in store.subscribers.channels() if flow.startswith(EXCHANGE)]
            ).now
        return Pending(now, later)
