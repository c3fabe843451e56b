"""The processes of a run: instances of the app, each a supervisor with its workers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import patch

from flowkit import App
from flowkit.engine import deadlines as timing
from flowkit.engine import directions as directing
from flowkit.engine import dispatcher as dispatching
from flowkit.engine import in_flight as noting
from flowkit.engine import maintenance as maintaining
from flowkit.engine import outages as waiting
from flowkit.engine import triage as triaging
from flowkit.engine import versions as versioning
from flowkit.engine import worker as working
from flowkit.engine.in_flight import InFlight, Slots, State
from flowkit.engine.worker import Worker
from flowkit.errors import FlowKitError
from flowkit.host import standby as standing
from flowkit.host import supervisor as supervising
from flowkit.host.instance import follow
from flowkit.host.standby import Standby, spare_worker
from flowkit.host.supervisor import REPLACE, SLOTS_VARIABLE, STOPPED, Supervisor
from flowkit.host.worker_process import wait_until_active
from flowkit.ports import Delivery, Fence
from flowkit.services import Services
from flowkit.settings import Settings
from flowkit.store.sql import SqlStore
from flowkit.transports.sql.transport import SqlTransport
from tests.simulation.broker import Broker, Link
from tests.simulation.database import Dialect, News
from tests.simulation.sharing import Sharing
from tests.simulation.shop import APP, Deeds
from tests.simulation.threads import IDLE_COLLECTOR, Event, Log, Threads, clock
from tests.simulation.world import Process, World

LEASE_SECONDS = 3
GROUP_SECONDS = 3.0
SLOTS = 16
GRACE_SECONDS = 10.0
FREEZES = (0.2, 1.0, 5.0, 9.0)
"""Seconds: the last two are longer than a lease, and leave others time to take over."""
AWAY = (0.0, 0.0, 1.0, 5.0)
"""Seconds until what died with its supervisor is started again."""
STEP_SECONDS = 0.1


class SkewedClock:
    """The clock of a machine that is set wrong."""

    def __init__(self, world: World, skew: float) -> None:
        self.now = lambda: world.now() + skew
        self.monotonic = world.monotonic


class Role(NamedTuple):
    """As what a supervisor and its workers run."""

    version: str = ""
    group: str = ""


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

    def services(self, process: Process, role: Role | None = None) -> Services:
        """What a process works with."""
        world, role = self.world, role or Role()
        settings = Settings.model_construct(
            database_url=f"sqlite:///{self.path}", lease=LEASE_SECONDS, threads=2,
            version=role.version, group=role.group, group_lease=GROUP_SECONDS,
        )  # fmt: skip
        store = SqlStore(Dialect(world, process, str(self.path), self.serial, self.news), world, self.id)
        transport = Link(self.broker, process) if self.broker else SqlTransport(store, LEASE_SECONDS)
        skew = world.random.uniform(-3600, 3600) if self.skewed else 0.0
        return Services(settings, store, transport, SkewedClock(world, skew), self.id, world.random.random)


class Child:
    """Stands for `subprocess.Popen` in the supervisor: a worker process of the world."""

    def __init__(self, instance: "Instance", slots: Slots) -> None:
        self.pid = instance.fleet.machine.world.points
        self.slots = slots
        self.worker: Worker | None = None
        self._fleet = instance.fleet
        self._role = instance.role
        self._process = instance.process()
        self._process.spawn("main", self._main)

    @property
    def returncode(self) -> int:
        assert self._process.status is not None
        return self._process.status

    def poll(self) -> int | None:
        return self._process.status

    def send_signal(self, number: int) -> None:
        if number == 9:
            self.kill()
        elif self.worker is not None:
            self.worker.stop()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        """It is dead at once."""

    def _main(self) -> None:
        """As the command line runs a worker."""
        try:
            self._process.kill(self._work())
        except FlowKitError:
            self._process.kill(1)  # it cannot begin without its services, and is started again

    def _work(self) -> int:
        fleet, world = self._fleet, self._fleet.machine.world
        services = fleet.machine.services(self._process, self._role)
        if self._role.group:
            never = SimpleNamespace(asked=Event(world), hangup=Event(world))
            wait_until_active(fleet.app, services, self.slots, cast(Any, never))
            self._process.fence = Fence(APP, self._role.group, self.slots.token).key
        begin_solo = services.store.suspects.begin_solo

        def note(suspect: Delivery, worker: str) -> None:
            fleet.deeds.solos.setdefault(suspect.identity, {})[worker] = self._process
            begin_solo(suspect, worker)
            world.point("alone", ("freeze",))  # nothing is locked: another worker may come by

        services.store.suspects.begin_solo = note  # type: ignore[method-assign]
        since = world.time
        self.worker = worker = Worker(fleet.app, services, None, self.slots)
        fleet.sharing.join(self._process, worker, since)
        for lane in worker.lanes:
            lane.pipeline.observe = fleet.deeds.observe
            lane.pipeline.call = fleet.deeds.watched(fleet.sharing.watched(lane.pipeline.call))

        def abandon() -> None:
            self._process.kill(REPLACE)
            world.leave()

        ended = worker.run(GRACE_SECONDS, abandon)
        if worker.overdue or worker.crippled or not ended:
            return REPLACE
        services.close()
        return STOPPED if any(lane.stopped for lane in worker.lanes) else 0


class Instance:
    """A supervisor and its workers. They die together, and the machine starts them again."""

    def __init__(self, fleet: "Fleet", role: Role, workers: int) -> None:
        self.fleet = fleet
        self.role = role
        self.workers = workers
        self.processes: list[Process] = []
        self.supervisor: Process | None = None
        self._init = Process(fleet.machine.world, "init")

    def process(self) -> Process:
        """A process for a worker."""
        self.fleet.started += 1
        process = Process(self.fleet.machine.world, f"worker{self.fleet.started}{self.role.version}{self.role.group}")
        self.processes = [one for one in self.processes if one.status is None] + [process]
        return process

    def start(self) -> None:
        """Start the supervisor."""
        self.supervisor = Process(self.fleet.machine.world, f"supervisor{self.role.version}{self.role.group}")
        self.supervisor.spawn("main", self._supervise)

    def stop(self) -> None:
        """End all of it at once."""
        for process in [self._init, self.supervisor, *self.processes]:
            if process is not None:
                process.kill()

    def restart(self, seconds: float) -> None:
        """End all of it at once, and start it again after so long."""
        self.stop()
        world = self.fleet.machine.world
        # Ended again before it was up, it comes up once.
        self._init = Process(world, "init")

        def start() -> None:
            world.sleep(seconds)
            self.start()

        self._init.spawn("main", start)

    def _supervise(self) -> None:
        fleet, world = self.fleet, self.fleet.machine.world
        assert self.supervisor is not None
        services = fleet.machine.services(self.supervisor, self.role)
        supervisor = Supervisor(self.role, self.workers, services.store, world, world.random.random)
        fleet.resources.callback(supervisor.close)
        charge = supervisor._charge

        def note(victim: InFlight, worker: str) -> None:
            together = worker not in fleet.deeds.solos.get(victim.identity, {})
            fleet.deeds.charges[victim.identity] += victim.state is State.OVERDUE and together
            charge(victim, worker)

        supervisor._charge = note  # type: ignore[method-assign]
        standby = self._standby(services) if self.role.group else None
        while supervisor.step():
            if standby is not None and standby.token != supervisor.token:
                follow(standby.token, supervisor, ())
            world.sleep(STEP_SECONDS)
        raise AssertionError(f"the supervisor ended with status {supervisor.status}")

    def _standby(self, services: Services) -> Standby:
        info = spare_worker(services.ids(), APP, services.settings)
        return Standby(services.store, services.clock, info, GROUP_SECONDS, spare=False)


class Fleet:
    """The instances of an app."""

    def __init__(self, machine: Machine, app: App, deeds: Deeds, sharing: Sharing) -> None:
        self.machine = machine
        self.app = app
        self.deeds = deeds
        self.sharing = sharing
        self.instances: list[Instance] = []
        self.started = 0
        self.unsupervised = 0
        """How often a supervisor died with its workers."""
        self.resources = ExitStack()
        deeds.explode = self.kill_all

    def add(self, role: Role, workers: int) -> None:
        """Start an instance."""
        self.instances.append(Instance(self, role, workers))
        self.instances[-1].start()

    def remove(self, version: str) -> None:
        """End the instances of a version, for good."""
        for one in self.instances:
            if one.role.version == version:
                one.stop()
        self.instances = [one for one in self.instances if one.role.version != version]

    def kill_all(self) -> None:
        """The machine is switched off, and on again."""
        self.unsupervised += 1
        for one in self.instances:
            one.restart(0.0)

    def strike(self, victim: Process, kind: str) -> bool:
        """A fault of a whole process."""
        world = self.machine.world
        supervised = next((one for one in self.instances if one.supervisor is victim), None)
        if kind == "kill" and supervised is not None:
            self.unsupervised += 1
            supervised.restart(world.random.choice(AWAY))  # workers die with their supervisor
        elif kind == "kill" and self._works(victim) and world.random.random() < 0.1:
            self.kill_all()
        elif kind == "kill":
            victim.kill()
        elif kind == "freeze":
            victim.freeze(world.random.choice(FREEZES))
        else:
            return False
        return True

    def _works(self, process: Process) -> bool:
        return any(process in one.processes for one in self.instances)

    def close(self) -> None:
        self.resources.close()


@contextmanager
def simulated(world: World, fleet: Fleet) -> Iterator[None]:
    """The modules of the engine with the threads, the time and the processes of a world."""

    def spawn(command: Any, env: dict[str, str], **options: Any) -> Child:
        slots = Slots(int(env[SLOTS_VARIABLE]))
        fleet.resources.callback(slots.close)
        instance = next(one for one in fleet.instances if one.role == tuple(command))
        return Child(instance, slots)

    with ExitStack() as patches:
        for module, name, stand_in in stand_ins(world, spawn):
            patches.enter_context(patch.object(module, name, stand_in))
        yield


def stand_ins(world: World, spawn: Callable[..., Child]) -> list[tuple[ModuleType, str, Any]]:
    """The module, the name in it, and what stands there for a thread, a time, a log, a limit or a process."""
    threads, log = Threads(world), Log(world)
    return [
        *((module, "threading", threads) for module in (working, dispatching, timing, waiting, standing, versioning)),
        *((module, "_log", log) for module in (working, dispatching, timing, waiting, directing)),
        *((module, "WATCH_SECONDS", 0.5) for module in (working, dispatching, maintaining, waiting)),
        (working, "gc", IDLE_COLLECTOR),
        (timing, "DEADLINE_STEP_SECONDS", 0.5),
        (triaging, "time", clock(world)),
        (noting, "COUNT", SLOTS),
        (supervising, "COUNT", SLOTS),
        (supervising, "MOST_BACKOFF_SECONDS", 2.0),
        (supervising, "subprocess", SimpleNamespace(Popen=spawn)),
    ]
