"""Forked processes: a child gives up the connections and locks that it inherits from its parent.

A child inherits every open descriptor. While the child lives, the parent's sockets stay open, its ports stay in use and
its locks stay held, even after the parent's death.
"""

import ctypes
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from flowkit.errors import ConfigError

PATIENCE_SECONDS = 5.0
CAME_BACK = 70
"""Exit status of a forked child that returned from its handler."""
T = TypeVar("T")
_log = logging.getLogger("flowkit")


class Making:
    """Counts connections that are being opened. A fork waits until the owner of each has registered it.

    A fork waits at most `PATIENCE_SECONDS`: a silent server may take longer.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        os.register_at_fork(before=self._wait, after_in_parent=self._changed.release, after_in_child=self._forget)

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def _wait(self) -> None:
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._count, PATIENCE_SECONDS)

    def _forget(self) -> None:
        self._count = 0
        self._changed.release()


making = Making()


def part_with(owner: T, descriptors: Callable[[T], Iterable[int]]) -> None:
    """Replace these descriptors of `owner` by /dev/null in every forked child, as long as `owner` lives.

    The child does not close them: it would reuse the numbers for files of its own, and the inherited code of the owner
    would close those files or write to them. Nor does it unlock or log out: that would affect the parent, too.
    """
    owned = weakref.ref(owner)

    def part() -> None:
        there = owned()
        if there is None:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors(there):
            with suppress(OSError):  # it is closed
                os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    os.register_at_fork(after_in_child=part)


def never_close(thing: object) -> None:
    """Keep an object until the process ends, and keep the interpreter from closing it then."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def refuse_child(process: int) -> None:
    """Raise ConfigError unless this is `process`, the process that opened the store, and not a fork of it."""
    if os.getpid() != process:
        raise ConfigError(
            "this process was forked after FlowKit had opened its store, whose connections belong to the parent; "
            "start processes with multiprocessing's spawn, or connect the app after the fork"
        )


def end_child(process: int, flow: str) -> None:
    """End this process if it is not `process`: a fork that returned from its handler would repeat the parent's work."""
    if os.getpid() != process:
        _log.error(
            "flow %s: a process that its handler forked returned from the handler, and was ended; end it with "
            "os._exit(), or start it with subprocess or multiprocessing", flow
        )  # fmt: skip
        os._exit(CAME_BACK)
