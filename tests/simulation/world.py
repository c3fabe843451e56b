"""The world of one run: tasks, processes, virtual time, and the faults that its seed plans."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from greenlet import GreenletExit, getcurrent, greenlet

from tests.simulation.fate import Fate

START = 1_700_000_000.0
STEP_SECONDS = 0.001
"""What a call costs on average. It makes leases end and time boxes fill."""
LOOK_TURNS = 64
MOST_POINTS = 400_000
"""More than this, and the run makes no progress."""


class Stuck(AssertionError):
    """A run did not come to its end."""


class Ended(BaseException):
    """Unwinds a task of a process that is dead: whatever it still tries comes to nothing."""


class Fault(NamedTuple):
    """What broke: at which point of the run, what, and where in the engine."""

    point: int
    kind: str
    where: str
    who: str
    time: float


class Task:
    """A thread: a greenlet that runs until its next point."""

    __slots__ = ("awake", "done", "fault", "greenlet", "name", "process", "wakes")

    def __init__(self, process: "Process", name: str, body: Callable[[], object]) -> None:
        self.process = process
        self.name = name
        self.greenlet = greenlet(lambda *_: body(), process.world.hub)
        self.fault: Fault | None = None
        """What is to break at the point where it stands, by its own doing."""
        self.awake = False
        """Whether it goes on soon. Who is woken by a clock may be woken by others too before that: once is enough."""
        self.wakes = 0
        """Counts its pauses, so that an alarm for an earlier one is known as such."""
        self.done = False


class Process:
    """A process: its threads die together, and `onto_death` is what the machine does then."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.tasks: list[Task] = []
        self.status: int | None = None
        self.until = 0.0
        """It is frozen until then."""
        self.fence: tuple[str, str, int] | None = None
        """The lease (name, holder, token) without which nothing that it commits may count; None: it has none."""
        self.onto_death: list[Callable[[], None]] = []
        self.onto_freeze: list[Callable[[float], None]] = []
        world.processes.append(self)

    def spawn(self, name: str, body: Callable[[], object]) -> Task:
        task = Task(self, f"{self.name}/{name}", body)
        self.tasks.append(task)
        self.world.wake(task)
        return task

    def kill(self, status: int = -9) -> None:
        """End it at once: none of its code runs any more."""
        if self.status is None:
            self.status = status
            self.world.graves += [task for task in self.tasks if not task.done]
            for act in self.onto_death:
                act()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        self.until = max(self.until, self.world.time + seconds)
        for act in self.onto_freeze:
            act(seconds)


class World:
    """One run. The same seed and the same fate make the same run, to the last statement."""

    def __init__(self, seed: int, fate: Fate) -> None:
        self.seed = seed
        self.fate = fate
        self.random = random.Random(seed)
        self.order = random.Random(seed ^ 0x5EED)
        self.time = START
        self.settings: list[tuple[float, float]] = []
        """When the clocks are set, and by how many seconds."""
        self.points = 0
        self.met: Counter[tuple[str, Sequence[str]]] = Counter()
        """Points by name, and what could break there."""
        self.faults: list[Fault] = []
        """Those that took effect."""
        self.graves: list[Task] = []
        self.processes: list[Process] = []
        self.closing = False
        self.errors: list[BaseException] = []
        """What tasks raised that should raise nothing."""
        self.strike: Callable[[Task, str], bool] = lambda task, kind: False
        """Makes a fault that is more than an answer to the task; whether it did."""
        self.hub = getcurrent()
        self._current: Task | None = None
        self._ready: list[Task] = []
        self._alarms: list[tuple[float, int, int, Task]] = []
        self._numbers = itertools.count()

    # ------------------------------------------------------------ clock

    def now(self) -> float:
        return self.time + sum(by for at, by in self.settings if at <= self.time)

    def monotonic(self) -> float:
        return self.time

    # ------------------------------------------------------------ called by tasks

    def point(self, where: str, kinds: Sequence[str] = ()) -> str | None:
        """Let others go on before a call. Returns what breaks in it, one of `kinds`, or None."""
        if getcurrent() is self.hub:
            return None
        task = self._mine()
        self.hub.switch((where, kinds))
        self._alive(task)
        return task.fault and task.fault.kind

    def hit(self) -> None:
        """What the last point of this task returned takes effect."""
        task = self._mine()
        assert task.fault is not None
        self.faults.append(task.fault)

    def blame(self, error: BaseException | None) -> None:
        """Note an error that nobody expected. A process that is dead unwinds, and may raise anything at that."""
        assert self._current is not None
        if error is not None and not self.closing and self._current.process.status is None:
            self.errors.append(error)

    def sleep(self, seconds: float) -> None:
        """Let time pass for this task."""
        if getcurrent() is self.hub:
            self.time += seconds
            return
        task = self._mine()
        self._alarm(task, seconds)
        self.hub.switch(None)
        self._alive(task)

    def wait(self, waiters: list[Task], seconds: float | None) -> None:
        """Wait until `wake_all` is called with the same list, at most so long."""
        task = self._mine()
        if seconds is not None:
            self._alarm(task, seconds)
        waiters.append(task)
        self.hub.switch(None)
        if task in waiters:
            waiters.remove(task)
        self._alive(task)

    @property
    def current(self) -> Task | None:
        """The task that runs; None outside of all."""
        return self._current

    def _mine(self) -> Task:
        assert self._current is not None
        self._alive(self._current)
        return self._current

    def _alive(self, task: Task) -> None:
        if self.closing or task.process.status is not None:
            raise Ended

    # ------------------------------------------------------------ scheduling

    def wake(self, task: Task) -> None:
        """Let a task go on."""
        if not task.awake:
            task.awake = True
            task.wakes += 1
            self._ready.append(task)

    def leave(self) -> None:
        """The task that calls this goes on no more: its process has just died."""
        self.hub.switch(None)
        raise Ended

    def wake_some(self, waiters: list[Task], count: int = 1_000_000) -> None:
        for task in waiters[:count]:
            waiters.remove(task)
            self.wake(task)

    def _alarm(self, task: Task, seconds: float) -> None:
        heapq.heappush(self._alarms, (self.time + seconds, next(self._numbers), task.wakes, task))

    def run(self, over: Callable[[], bool], seconds: float) -> None:
        """Run until `over`, which is asked now and then. Raises Stuck when it does not come within `seconds`."""
        end = self.time + seconds
        turns = 0
        while True:
            turns += 1
            if turns % LOOK_TURNS == 0 and over():
                return
            if self.time > end or self.points > MOST_POINTS:
                if over():
                    return
                raise Stuck(f"not at rest after {self.time - START:.0f} s and {self.points:,} points")
            self._turn()

    def run_for(self, seconds: float) -> None:
        """Run for so long."""
        end = self.time + seconds
        while self.time < end:
            self._turn()

    def _turn(self) -> None:
        """Let one of those that can go on do so; if none can, time passes until one does."""
        while self._alarms and self._alarms[0][0] <= self.time:
            self._ring()
        ready = self._ready
        if ready:
            number = int(self.order.random() * len(ready))
            ready[number], ready[-1] = ready[-1], ready[number]
            self._go_on(ready.pop())
        elif self._alarms:
            self.time = self._alarms[0][0]
        else:
            raise Stuck("every task waits for another")

    def _ring(self) -> None:
        _, _, wakes, task = heapq.heappop(self._alarms)
        if wakes == task.wakes and task.process.status is None:
            self.wake(task)

    def _go_on(self, task: Task) -> None:
        task.awake = False
        process = task.process
        if process.status is not None:
            return
        if process.until > self.time:
            self._alarm(task, process.until - self.time)
            return
        self._current = task
        try:
            said = task.greenlet.switch()
        except Ended:
            said = None
        except Exception as error:
            self.errors.append(error)
            said = None
        finally:
            self._current = None
        if task.greenlet.dead:
            task.done = True
            if task in process.tasks:
                process.tasks.remove(task)
        elif said is not None:
            self._at(task, *said)

    def _at(self, task: Task, where: str, kinds: Sequence[str]) -> None:
        """A task stands at a point: time passes, and perhaps something breaks."""
        self.points += 1
        self.time += STEP_SECONDS * 2 * self.order.random()
        if task.process.status is not None:
            return
        self.met[where, kinds] += 1
        kind = self.fate.choose(self.points, where, kinds) if kinds else None
        task.fault = None
        if kind is not None:
            fault = Fault(self.points, kind, where, task.name, self.time - START)
            if self.strike(task, kind):
                self.faults.append(fault)
            else:
                task.fault = fault
            if task.process.status is not None:
                return
        self.wake(task)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Unwind every task. What they still try comes to nothing."""
        self.closing = True
        for process in self.processes:
            process.kill()
        for task in self.graves:
            self._current = task
            with suppress(BaseException):
                task.greenlet.throw(GreenletExit)
        self._current = None
