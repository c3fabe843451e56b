"""Outages: steps of a worker that need a service, and the wait while that service cannot be reached."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from flowkit.engine.readiness import Readiness
from flowkit.errors import BrokerUnavailable, StoreConflict, StoreLost, Unavailable
from flowkit.ports import Random

WATCH_SECONDS = 0.25
"""Seconds by which a delayed message may be noticed late, if nothing else wakes the worker."""
BACKOFF_SECONDS = (0.1, 5.0)
_log = logging.getLogger("flowkit.worker")


class Outages:
    """Knows which services of a worker cannot be reached. Any thread may call it."""

    def __init__(
        self, readiness: Readiness, stopping: threading.Event, random: Random, lose: Callable[[StoreLost], None]
    ) -> None:
        """`lose` is called when the database of the worker was removed or replaced."""
        self._readiness = readiness
        self._stopping = stopping
        self._random = random
        self._lose = lose
        self._failures: dict[str, int] = {}
        """Service that cannot be reached now -> how often a step has failed to reach it."""

    def guarded(self, step: Callable[[], Any], *needs: str) -> Any:
        """Run a step that needs these services. Returns the step's result, or True after a failure. Blocks.

        A service that cannot be reached is logged once. After each failure the thread waits, with backoff and jitter.
        """
        try:
            result = step()
        except StoreConflict as error:
            _log.info("the store is busy: %s; this is tried again", error)
            return True
        except Unavailable as error:
            missed = "broker" if isinstance(error, BrokerUnavailable) else "store"
            if isinstance(error, StoreLost):
                self._lose(error)
            elif missed not in self._failures:
                _log.error("the %s cannot be reached: %s; nothing is acknowledged until it is back", missed, error)
        except Exception:
            missed = "step"
            _log.exception("a step failed, and is tried again")
        else:
            for name in (*needs, "step"):
                if self._failures.pop(name, 0) and name != "step":
                    _log.info("the %s is back", name)
            if not self._failures and not self._stopping.is_set():
                self._readiness.judge()
            return result
        self._readiness.state = "unready"
        self._wait(missed)
        return True

    def _wait(self, missed: str) -> None:
        self._failures[missed] = failures = self._failures.get(missed, 0) + 1
        # To ask whether the broker is back costs nothing: its transport reconnects with a backoff of its own.
        first, most = (WATCH_SECONDS, WATCH_SECONDS) if missed == "broker" else BACKOFF_SECONDS
        self._stopping.wait(min(most, first * 2 ** min(failures, 10)) * self._random())
