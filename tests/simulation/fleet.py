"""The processes of a run: supervised workers, and clients that publish."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from flowkit import App
from flowkit.config import Services, Settings
from flowkit.engine import lane as laning
from flowkit.engine import slots as slotting
from flowkit.engine import supervisor as supervising
from flowkit.engine import worker as working
from flowkit.engine.slots import InFlight, Slots, State
from flowkit.engine.supervisor import REPLACE, SLOTS_VARIABLE, STOPPED, Supervisor
from flowkit.engine.worker import Worker
from flowkit.errors import FlowKitError, OutcomeUnknown
from flowkit.flow import compose
from flowkit.ports import Delivery
from flowkit.publisher import Publisher
from flowkit.store.sql import SqlStore
from flowkit.transports.sql import SqlTransport
from tests.simulation.broker import Broker, Link
from tests.simulation.database import Dialect, News
from tests.simulation.shop import Deeds, Order
from tests.simulation.threads import IDLE_COLLECTOR, Log, Threads, clock
from tests.simulation.world import Process, World

LEASE_SECONDS = 3
SLOTS = 16
GRACE_SECONDS = 10.0
FREEZES = (0.2, 1.0, 5.0, 9.0)
"""Seconds: the last two are longer than a lease, and leave others time to take over."""
STEP_SECONDS = 0.1


class SkewedClock:
    """The clock of a machine that is set wrong."""

    def __init__(self, world: World, skew: float) -> None:
        self.now = lambda: world.time + skew
        self.monotonic = world.monotonic


class Machine:
    """Where processes get what they work with: one database file, perhaps a broker."""

    def __init__(self, world: World, path: Path, serial: bool, broker: bool, skewed: bool) -> None:
        self.world = world
        self.path = path
        self.serial = serial
        self.broker = Broker(world) if broker else None
        self.skewed = skewed
        self.news = News(world)
        self._ids = 0

    def id(self) -> str:
        """Like a UUIDv7: unique, and sortable by time."""
        self._ids += 1
        time = f"{int(self.world.time * 1000):012x}"
        return f"{time[:8]}-{time[8:]}-7000-8000-{self._ids:012x}"

    def services(self, process: Process) -> Services:
        """What a process works with."""
        world = self.world
        settings = Settings.model_construct(database_url=f"sqlite:///{self.path}", lease=LEASE_SECONDS, threads=2)
        store = SqlStore(Dialect(world, process, str(self.path), self.serial, self.news), world, self.id)
        transport = Link(self.broker, process) if self.broker else SqlTransport(store, LEASE_SECONDS)
        skew = world.random.uniform(-3600, 3600) if self.skewed else 0.0
        return Services(settings, store, transport, SkewedClock(world, skew), self.id, world.random.random)


class Child:
    """Stands for `subprocess.Popen` in the supervisor: a worker process of the world."""

    def __init__(self, fleet: "Fleet", slots: Slots) -> None:
        self.pid = fleet.machine.world.points
        self.slots = slots
        self.worker: Worker | None = None
        self._fleet = fleet
        self._process = fleet.process(f"worker{fleet.started}")
        self._process.spawn("main", self._main)

    @property
    def returncode(self) -> int:
        assert self._process.status is not None
        return self._process.status

    def poll(self) -> int | None:
        return self._process.status

    def send_signal(self, number: int) -> None:
        if number == 9:
            self._process.kill()
        elif self.worker is not None:
            self.worker.stop()

    def _main(self) -> None:
        """As the command line runs a worker."""
        try:
            self._process.kill(self._work())
        except FlowKitError:
            self._process.kill(1)  # it cannot begin without its services, and is started again

    def _work(self) -> int:
        fleet = self._fleet
        services = fleet.machine.services(self._process)
        venture = services.store.venture

        def note(suspect: Delivery, worker: str) -> None:
            fleet.deeds.ventures.setdefault(suspect.identity, {})[worker] = self._process
            venture(suspect, worker)
            fleet.machine.world.point("alone", ("freeze",))  # nothing is locked: another worker may come by

        services.store.venture = note  # type: ignore[method-assign]
        self.worker = worker = Worker(fleet.app, services, None, self.slots)
        for lane in worker.lanes:
            lane.pipeline.observe = fleet.deeds.observe
            lane.pipeline.call = fleet.deeds.watched(lane.pipeline.call)

        def abandon() -> None:
            self._process.kill(REPLACE)
            fleet.machine.world.leave()

        ended = worker.run(GRACE_SECONDS, abandon)
        if worker.overdue or worker.crippled or not ended:
            return REPLACE
        services.close()
        return STOPPED if any(lane.stopped for lane in worker.lanes) else 0


class Fleet:
    """A supervisor and its workers."""

    def __init__(self, machine: Machine, app: App, deeds: Deeds, workers: int) -> None:
        self.machine = machine
        self.app = app
        self.deeds = deeds
        self.workers = workers
        self.started = 0
        self.processes: list[Process] = []
        self.supervisor: Process | None = None
        self._init = Process(machine.world, "init")
        self.unsupervised = 0
        """How often the supervisor died with its workers."""
        self._resources = ExitStack()
        deeds.explode = self.kill_all

    def process(self, name: str) -> Process:
        self.started += 1
        process = Process(self.machine.world, name)
        self.processes = [one for one in self.processes if one.status is None] + [process]
        return process

    def start(self) -> None:
        """Start the supervisor."""
        self.supervisor = Process(self.machine.world, "supervisor")
        self.supervisor.spawn("main", self._supervise)

    def _supervise(self) -> None:
        world = self.machine.world
        assert self.supervisor is not None
        services = self.machine.services(self.supervisor)
        supervisor = Supervisor(["worker"], self.workers, services.store, world, world.random.random)
        self._resources.callback(supervisor.close)
        charge = supervisor._charge

        def note(victim: InFlight, worker: str) -> None:
            together = worker not in self.deeds.ventures.get(victim.identity, {})
            self.deeds.charges[victim.identity] += victim.state is State.OVERDUE and together
            charge(victim, worker)

        supervisor._charge = note  # type: ignore[method-assign]
        while supervisor.step():
            world.sleep(STEP_SECONDS)
        raise AssertionError(f"the supervisor ended with status {supervisor.status}")

    def kill_all(self) -> None:
        """The machine is switched off, and on again."""
        self.unsupervised += 1
        assert self.supervisor is not None
        for process in [self._init, self.supervisor, *self.processes]:
            process.kill()
        # Switched off again before it was up, it comes up once.
        self._init = Process(self.machine.world, "init")
        self._init.spawn("main", self.start)

    def strike(self, victim: Process, kind: str) -> bool:
        """A fault of a whole process."""
        world = self.machine.world
        if kind == "kill" and (victim is self.supervisor or (victim in self.processes and world.random.random() < 0.1)):
            self.kill_all()  # workers die with their supervisor
        elif kind == "kill":
            victim.kill()
        elif kind == "freeze":
            victim.freeze(world.random.choice(FREEZES))
        else:
            return False
        return True

    def close(self) -> None:
        self._resources.close()


class Client:
    """Publishes orders from a process of its own, which may die at it, and logs what it was told."""

    def __init__(self, machine: Machine, app: App, name: str, orders: Sequence[Order]) -> None:
        self._machine = machine
        self._app = app
        self._name = name
        self.todo = list(orders)
        self.log: dict[str, str] = {}
        """Name -> ok, unknown or fail: what it may believe. Once unknown, no later failure makes it a fail."""
        self.refused: dict[str, float] = {}
        """Name -> when it was told last that nothing of it was accepted."""
        self._started = 0
        self.start()

    @property
    def finished(self) -> bool:
        return not self.todo

    def start(self) -> None:
        self._started += 1
        self._process = Process(self._machine.world, f"{self._name}.{self._started}")
        self._process.onto_death.append(self._again)
        self._process.spawn("main", self._publish)

    def _again(self) -> None:
        if self.todo and not self._machine.world.closing:
            self.start()

    def _publish(self) -> None:
        world = self._machine.world
        services = self._machine.services(self._process)
        context = self._app.context(services)
        publisher = Publisher(services.store, context)
        channel = self._app.channels["orders"]
        while self.todo:
            order = self.todo[0]
            before = self.log.get(order.name)
            if before and world.random.random() < 0.3:
                self.todo.pop(0)  # it will never know
                continue
            self.log[order.name] = "unknown"
            try:
                publisher.publish([compose(context, channel(order), "client", id=order.name)])
            except OutcomeUnknown:
                continue
            except FlowKitError:
                if before != "unknown":
                    self.log[order.name] = "fail"
                    self.refused[order.name] = world.time
                world.sleep(0.1)
                continue
            self.log[order.name] = "ok"
            self.todo.pop(0)
            world.sleep(0.05 * world.random.random())


class Operator:
    """Sends dead letters again, in a process that may die at it."""

    def __init__(self, machine: Machine, letters: Sequence[str]) -> None:
        self._machine = machine
        self._letters = letters
        self.finished = False
        self.start()

    def start(self) -> None:
        process = Process(self._machine.world, "operator")
        process.onto_death.append(lambda: None if self.finished or self._machine.world.closing else self.start())
        process.spawn("main", lambda: self._retry(process))

    def _retry(self, process: Process) -> None:
        store: Any = self._machine.services(process).store
        while not self.finished:
            try:
                store.dead_letters.retry(self._letters)
                self.finished = True
            except FlowKitError:
                self._machine.world.sleep(0.1)


@contextmanager
def simulated(world: World, fleet: Fleet) -> Iterator[None]:
    """The modules of the engine with the threads, the time and the processes of a world."""

    def spawn(command: Any, env: dict[str, str], **options: Any) -> Child:
        slots = Slots(int(env[SLOTS_VARIABLE]))
        fleet._resources.callback(slots.close)
        return Child(fleet, slots)

    with ExitStack() as patches:
        for module, name, stand_in in (
            (working, "threading", Threads(world)),
            (working, "gc", IDLE_COLLECTOR),
            (working, "_log", Log(world)),
            (working, "WATCH_SECONDS", 0.5),
            (working, "DEADLINE_STEP_SECONDS", 0.5),
            (laning, "time", clock(world)),
            (slotting, "COUNT", SLOTS),
            (supervising, "COUNT", SLOTS),
            (supervising, "MOST_BACKOFF_SECONDS", 2.0),
            (supervising, "subprocess", SimpleNamespace(Popen=spawn)),
        ):
            patches.enter_context(patch.object(module, name, stand_in))
        yield
