"""Idle: no message of the chosen flows is pending."""

import logging
import time
from collections.abc import Sequence

from flowkit.disclosure import told
from flowkit.errors import StoreConflict, Unavailable
from flowkit.operations.pending import left
from flowkit.ports import Store, Transport

LOOK_SECONDS = 0.2
_log = logging.getLogger("flowkit.run")


class Idle:
    """Detects that the flows have no pending messages. Two looks in a row must agree, because a look locks nothing."""

    def __init__(self, store: Store, transport: Transport, flows: Sequence[str], broker: bool) -> None:
        """`broker`: the transport has a broker, whose queues count too."""
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
        """Return whether the flows are idle; look at most every LOOK_SECONDS. Blocks.

        The answer is False while the database or the broker cannot be reached: the workers wait for it too.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        try:
            now_pending, later = left(self._store, self._transport, self._flows, self._broker)
        except Exception as error:
            if not isinstance(error, Unavailable | StoreConflict) and str(error) != self._failed:
                _log.error("cannot count the pending messages; tries again in %g s: %s", LOOK_SECONDS, told(error))
            self._seen, self._failed = 0, str(error)
            return False
        if later and not now_pending and not self._told:
            self._told = True
            _log.warning("only delayed messages and retries are left; waiting for %d", later)
        self._seen = 0 if now_pending or later else self._seen + 1
        return self._seen >= 2
