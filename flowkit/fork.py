"""Forked processes: what a child does not keep of the process that forked it.

A child inherits every open descriptor. While it lives, a socket of its parent is not closed, a port is not free and a
lock is held, even when the parent died long ago.
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
"""Exit status of a child that came back from the handler that forked it."""
T = TypeVar("T")
_log = logging.getLogger("flowkit")


class Making:
    """Counts connections that are being made: a fork waits until the owner of each knows it, and can part with it.

    A connection takes its time. A fork waits for it, at most `PATIENCE_SECONDS`: its server may be silent for longer.
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
    """Take these descriptors of `owner` away from every process that this one forks, as long as `owner` lives.

    They become /dev/null in the child. Closed numbers would be given to files of the child, and the owner's code, which
    the child inherits too, would close or write to those. Unlocking or saying goodbye would do so for the parent, too.
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
    """Keep an object until the process ends, and do not let the interpreter close it then."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def refuse_child(process: int) -> None:
    """Raise ConfigError in a process that was forked from `process`, which opened the store."""
    if os.getpid() != process:
        raise ConfigError(
            "this process was forked after FlowKit had opened its store, whose connections belong to the parent; "
            "start processes by multiprocessing's spawn, or connect the app after the fork"
        )


def end_child(process: int, flow: str) -> None:
    """End a process that a handler forked from `process` and that came back from the handler: all that follows is the
    parent's to do, and the child would do it again."""
    if os.getpid() != process:
        _log.error(
            "flow %s: a process that its handler forked came back from it, and is ended; end it by os._exit(), "
            "or start it by subprocess or multiprocessing", flow
        )  # fmt: skip
        os._exit(CAME_BACK)
