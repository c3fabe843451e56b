"""Process 1 of a container: it obeys signals and reaps orphaned processes, which the kernel gives to it.

This module imports little, because SIGTERM is lost until `obey_signals` has run.
"""

import os
import signal
from collections.abc import Collection
from contextlib import suppress

INIT = 1


def obey_signals() -> None:
    """As process 1, exit at SIGTERM and SIGHUP from now on. The kernel drops signals that process 1 does not handle."""
    if os.getpid() == INIT:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os._exit(128 + number))


def reap_orphans(own: Collection[int]) -> None:
    """As process 1, reap dead processes whose parents are gone, so that they leave the process table. Does not block.

    `own`: process ids of children that other code waits for. Programs that an app starts while it is imported are
    reaped too.
    """
    if os.getpid() != INIT:
        return
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)
