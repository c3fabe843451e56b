"""The end of a process: it exits within its grace, even if a thread or the database hangs."""

import logging
import os
import threading
import time

from flowkit.host.signals import Signals
from flowkit.host.supervisor import Supervisor

STEP_SECONDS = 0.05
INTERRUPTED = 130
MARGIN_SECONDS = 2.0
"""Seconds beyond their grace after which the workers are killed."""
REST_SECONDS = 2.0
"""Longest time in seconds until the supervisor exits after its last worker."""
_log = logging.getLogger("flowkit.run")


def end(status: int) -> None:
    """Flush the logs and end this process at once. No thread, lock or pipe can delay it."""
    logging.shutdown()
    os._exit(status)


def end_after(seconds: float, status: int, why: str) -> None:
    """Log `why` and end this process after `seconds`, unless it exits before. Does not block."""

    def late() -> None:
        time.sleep(seconds)
        _log.error("%s", why)
        end(status)

    threading.Thread(target=late, name="flowkit-grace", daemon=True).start()


class Ending:
    """Ends a supervisor and its workers. The end begins at the first signal, or by `begin`.

    The thread that steps the supervisor may wait for a frozen database. Another thread therefore keeps the time.
    """

    def __init__(self, supervisor: Supervisor, grace: float, signals: Signals) -> None:
        self._supervisor = supervisor
        self._grace = grace
        self._signals = signals
        self._killed = False
        self._beginning = threading.Lock()
        self._begun = False
        signals.call(self.begin)

    def begin(self) -> None:
        """Ask the workers to finish, and kill them after their grace. Does not block. Any thread may call it."""
        self._supervisor.stop()
        with self._beginning:
            begun, self._begun = self._begun, True
        if not begun:
            threading.Thread(target=self._keep_time, name="flowkit-ending", daemon=True).start()

    def wait(self) -> int:
        """Step the supervisor until no worker is left. Returns the exit code. Blocks."""
        self.begin()
        while self._supervisor.step():
            time.sleep(STEP_SECONDS)
        return self._status

    @property
    def _status(self) -> int:
        return INTERRUPTED if self._signals.again.is_set() else max(self._supervisor.status, int(self._killed))

    def _keep_time(self) -> None:
        again = self._signals.again.wait(self._grace + MARGIN_SECONDS)
        if self._supervisor.pids:
            why = "at the second signal" if again else f"because they did not finish within {self._grace:g}s"
            _log.error("workers %s are killed %s; their messages are taken over", self._supervisor.pids, why)
            self._killed = True
            self._supervisor.kill()
        time.sleep(REST_SECONDS)
        _log.error(
            "the supervisor is ended, because it did not finish within %gs: does the database hang?", self._grace
        )
        end(max(self._status, 1))
