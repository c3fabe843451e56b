"""Reports of the supervisor to systemd, if systemd started it: sd_notify(3) and sd_watchdog_enabled(3)."""

import os
import socket
import time
from contextlib import suppress


class ServiceManager:
    """Reports to the service manager that this process is ready, alive, or stopping. Does nothing without one."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")  # workers must not report for the service
        microseconds = int(os.environ.pop("WATCHDOG_USEC", "0"))
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._every = microseconds / 2e6
        """Seconds between two signs of life: half of the watchdog's interval. 0: no watchdog."""
        self._ready = False
        self._told = 0.0

    def step(self, ready: bool) -> None:
        """Report that the service is ready, once, and a sign of life when one is due. Call it repeatedly. Does not
        block."""
        if ready and not self._ready:
            self._ready = True
            self._tell("READY=1")
        if self._every and time.monotonic() - self._told >= self._every:
            self._told = time.monotonic()
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Report that the service is stopping. Does not block."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if self._address:
            # A lost report does not end the process: the next sign of life may arrive.
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
                speaking.setblocking(False)
                speaking.sendto(state.encode(), self._address)
