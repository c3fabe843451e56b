"""Process 1 of a container: it obeys signals and reaps orphans, which the kernel leaves to it.

Imports little: until `obey_signals` has run, SIGTERM is lost.
"""

import os
import signal
from collections.abc import Collection
from contextlib import suppress

INIT = 1


def obey_signals() -> None:
    """As process 1, end at SIGTERM and SIGHUP from now on: the kernel keeps signals without a handler from it."""
    if os.getpid() == INIT:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os._exit(128 + number))


def reap_orphans(own: Collection[int]) -> None:
    """As process 1, let go of processes that ended and whose parents are gone, so that they leave the process table.

    `own`: children that somebody else here waits for. Programs that an app starts as it is imported are taken for
    orphans, too. Does not block.
    """
    if os.getpid() != INIT:
        return
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)
