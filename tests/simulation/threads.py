"""Stand-ins for `threading`, `time`, `gc` and the log in the engine's modules during the simulation."""

import sys
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any

from tests.simulation.world import Task, World


class Threads:
    """Stands for the module `threading`: its threads are tasks of the process that starts them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def Event(self) -> "Event":
        return Event(self._world)

    def Condition(self) -> "Condition":
        return Condition(self._world)

    def RLock(self) -> "RLock":
        return RLock(self._world)

    def Thread(self, target: Callable[..., Any], name: str, args: Any = (), daemon: bool = True) -> "Thread":
        return Thread(self._world, target, name, args)


class Event:
    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._world.wake_some(self._waiters)

    def wait(self, seconds: float | None = None) -> bool:
        if not self._set:
            self._world.wait(self._waiters, seconds)
        return self._set


class Condition:
    """Nobody else runs between two points, so its lock is always free; nothing that it guards has a point inside."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiters: list[Task] = []

    def __enter__(self) -> bool:
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def wait(self, seconds: float | None = None) -> None:
        self._world.wait(self._waiters, seconds)

    def notify(self, count: int = 1) -> None:
        self._world.wake_some(self._waiters, count)

    def notify_all(self) -> None:
        self._world.wake_some(self._waiters)


class RLock:
    """Its owner may have a point inside, so that others find it taken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: Task | None = None
        self._depth = 0
        self._waiters: list[Task] = []

    def acquire(self, timeout: float = -1) -> bool:
        world, me = self._world, self._world.current
        end = world.time + timeout
        while self._owner not in (None, me):
            left = end - world.time if timeout >= 0 else None
            if left is not None and left <= 0:
                return False
            world.wait(self._waiters, left)
        self._owner, self._depth = me, self._depth + 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._world.wake_some(self._waiters, 1)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Thread:
    def __init__(self, world: World, target: Callable[..., Any], name: str, args: Any) -> None:
        assert world.current is not None
        self._world = world
        self._process = world.current.process
        self._name = name
        self._body: Callable[[], Any] = lambda: target(*args)
        self._task: Task | None = None
        self._waiters: list[Task] = []

    def start(self) -> None:
        self._task = self._process.spawn(self._name, self._run)

    def _run(self) -> None:
        self._body()
        self._world.wake_some(self._waiters)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, seconds: float | None = None) -> None:
        if self.is_alive():
            self._world.wait(self._waiters, seconds)


class Log:
    """Stands for the log of a worker: an error that it did not expect, and lives through, is one of the run."""

    def __init__(self, world: World) -> None:
        self._world = world

    def exception(self, text: str, *values: object) -> None:
        self._world.blame(sys.exception())

    def error(self, text: str, *values: object) -> None:
        pass

    warning = info = error


def clock(world: World) -> SimpleNamespace:
    """Stands for the module `time`."""
    return SimpleNamespace(sleep=world.sleep, monotonic=world.monotonic, time=world.now)


IDLE_COLLECTOR = SimpleNamespace(collect=lambda: 0, freeze=lambda: None)
"""Stands for the module `gc`."""
