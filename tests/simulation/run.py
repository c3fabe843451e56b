"""One run of a seed: orders and faults, then rest, then the oracle."""

import gc
import logging
import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from unittest.mock import patch

from flowkit.engine import relay
from flowkit.ports import Rollout
from flowkit.services import SystemClock
from flowkit.store.library import sqlite_driver
from flowkit.store.sqlite import open_store
from tests.simulation import oracle
from tests.simulation.database import IDLE
from tests.simulation.fate import Fate, Planned, Seeded
from tests.simulation.fleet import LEASE_SECONDS, Fleet, Machine, Role, simulated
from tests.simulation.outside import NEW, Change, Client, Deployer, Operator
from tests.simulation.sharing import Sharing
from tests.simulation.shop import APP, DEEDS, Order, new_app
from tests.simulation.world import START, Fault, Stuck, World
from tests.support.shop import Base

KINDS = (
    "kill", "freeze", "cut", "cut after", "full", "busy",
    "disconnect", "nack", "unconfirmed", "alarm", "delete",
)  # fmt: skip
"""What can break."""
VERSIONS, GROUPS, SUSPECTS, CLOCK, CONTENTION = 0.15, 0.15, 0.05, 0.05, 0.03
"""In how many runs a version is rolled out, there are two groups, many orders kill their workers, clocks are set, or
most orders count the same object up."""
OFTEN_HOT = 0.7
"""How many orders do that then."""
HOUR = 3600.0
SET_SECONDS = 5.0
"""In how many seconds from the beginning the clock is set."""
PAUSE_SECONDS, LONG_PAUSE_SECONDS = 0.05, 0.6
LINGERING = 10
"""So many orders more, which are in hand for long, are there while a version is rolled out."""
REST_SECONDS = 600.0
"""How long, in virtual time, a run may take, and then again to come to rest when nothing breaks any more."""


class Shape(Enum):
    """What a run is about."""

    PLAIN = "one group of one version"
    VERSIONS = "another version is rolled out"
    GROUPS = "two groups, one of them active"
    SUSPECTS = "many orders kill their workers"
    CLOCK = "the clock of the database is set back"
    CONTENTION = "most orders count the same object up, where several may write"


class Result(NamedTuple):
    """What became of a run."""

    seed: int
    failure: str
    faults: list[Fault]
    points: int
    seconds: float
    """Virtual ones."""
    counts: Counter[str]
    """Of what happened: messages, redeliveries, deaths, …"""
    met: Counter[tuple[str, Sequence[str]]]
    """The points by name, and what could break there."""


class Run:
    """A world with its machine, fleet and clients, up to the oracle's judgement. A context manager."""

    def __init__(
        self, seed: int, fate: Fate, database: Path, serial: bool, broker: bool, skewed: bool, roles: Mapping[Role, int]
    ) -> None:
        """`roles`: what instances there are, and how many workers each has."""
        self.world = World(seed, fate)
        database.write_bytes(_template())
        self.machine = Machine(self.world, database, serial, broker, skewed)
        self.app, self.deeds = new_app(self.world)
        self.world.strike = lambda task, kind: self.fleet.strike(task.process, kind)
        self.clients: list[Client] = []
        self.deployer: Deployer | None = None
        self.orders: list[Order] = []
        self._store = oracle.open_store(self.world, database)
        self._store.subscribers.add({flow.name: flow.source.name for flow in self.app.flows.values()})
        self.fleet = Fleet(self.machine, self.app, self.deeds, Sharing(self.world, self._store, LEASE_SECONDS))
        self._roles = roles

    def __enter__(self) -> "Run":
        self._patches = simulated(self.world, self.fleet)
        self._patches.__enter__()
        for role, workers in self._roles.items():
            self.fleet.add(role, workers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.world.close()
        self._store.close()
        self.fleet.close()
        self._patches.__exit__(None, None, None)

    def publish(self, orders: Sequence[Order], pause: float = PAUSE_SECONDS) -> None:
        """Let a client publish these, with pauses of up to so many seconds."""
        self.orders += orders
        self.clients.append(Client(self.machine, self.app, f"client{len(self.clients)}", orders, pause))

    def deploy(self, workers: int, steps: Sequence[Change]) -> None:
        """Let another version be rolled out, with so many workers."""
        self.deployer = Deployer(self.fleet, workers, steps)

    def finish(self) -> str:
        """Let everything come to its end. Returns what is wrong then; empty if nothing is."""
        wrong = self._rest()
        for error in self.world.errors:  # the first; what the oracle says may follow from it
            *way, what = traceback.format_exception(error)
            return "".join([what, *way]).strip()
        return wrong

    def _rest(self) -> str:
        """Let everything come to rest, and mend what waits for it. Returns what the oracle says then."""
        world = self.world
        try:
            world.run(self.at_rest, REST_SECONDS)
            self.deeds.mended = True
            operator = Operator(self.machine, oracle.letters_to_mend(self._store))
            world.run(lambda: operator.finished and self.at_rest(), REST_SECONDS)
            oracle.check(self.machine, self._store, self.app, self.clients, self.orders, self.deeds)
        except Stuck as error:
            waiting = sum(not client.finished for client in self.clients)
            left = oracle.left(self.machine, self._store, self.app)
            return f"Stuck: {error}; {waiting} clients publish; {left}"
        except AssertionError as error:
            return str(error)
        return ""

    def takeovers(self) -> int | None:
        """How often a group took over from another; None where there are none."""
        standing = self._store.groups.standing(APP)
        return standing.token - 1 if standing is not None else None

    def at_rest(self) -> bool:
        """Whether everything is published and at its end."""
        finished = all(one.finished for one in self.clients) and (self.deployer is None or self.deployer.finished)
        return finished and oracle.at_rest(self.machine, self._store, self.app)


def shape(seed: int) -> Shape:
    """What the run of a seed is about."""
    special = {
        Shape.VERSIONS: VERSIONS,
        Shape.GROUPS: GROUPS,
        Shape.SUSPECTS: SUSPECTS,
        Shape.CLOCK: CLOCK,
        Shape.CONTENTION: CONTENTION,
    }
    weights = [*special.values(), 1 - sum(special.values())]
    return random.Random(f"shape {seed}").choices([*special, Shape.PLAIN], weights)[0]


def simulate(
    seed: int, plan: Mapping[int, str] | None = None, mutate: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Result:
    """Run a seed. With `plan` its faults are these: point -> kind. `mutate` opens a context with a broken engine."""
    drawn = random.Random(seed)
    fate = Seeded(seed, KINDS, IDLE) if plan is None else Planned(plan)
    serial, broker, skewed = drawn.random() < 0.5, drawn.random() < 0.5, drawn.random() < 0.3
    about = shape(seed)
    serial = serial and about is not Shape.CONTENTION
    deeds = [_deed(drawn, serial, about) for _ in range(drawn.randint(2, 14))]
    orders = [Order(name=f"o{number}", deed=deed) for number, deed in enumerate(deeds)]
    half, workers = len(orders) // 2, drawn.randint(1, 3)
    roles = {Role(): workers}
    if about is Shape.VERSIONS:
        roles = {Role(version="v1"): workers}
        orders += [Order(name=f"o{number}", deed="slow") for number in range(len(orders), len(orders) + LINGERING)]
    elif about is Shape.GROUPS:
        roles = {Role(group="a"): workers, Role(group="b"): drawn.randint(1, 2)}
    settings = _settings(drawn) if about is Shape.CLOCK else []
    with scratch() as folder, quiet(), mutate(), Run(
        seed, fate, folder / "sim.db", serial, broker, skewed, roles
    ) as run:  # fmt: skip
        run.world.settings = settings
        if about is Shape.VERSIONS:
            run.deploy(drawn.randint(1, 2), _steps(drawn))
        for some in (orders[:half], orders[half:]):  # while a version is rolled out more come
            run.publish(some, LONG_PAUSE_SECONDS if run.deployer else PAUSE_SECONDS)
        failure = run.finish()
        world = run.world
        return Result(seed, failure, world.faults, world.points, world.time - START, _counts(run), world.met)


def _counts(run: Run) -> Counter[str]:
    """What happened."""
    faults, deeds = run.world.faults, run.deeds
    counts = Counter(
        {
            "runs": 1,
            "messages": len(run.orders),
            "handler calls": deeds.runs.total(),
            "deaths": sum(fault.kind == "kill" for fault in faults) + run.fleet.unsupervised,
            "deaths of all": run.fleet.unsupervised,
        }
    )
    if run.deployer is not None:
        counts["runs with a rollout"] = 1
    if run.world.settings:
        counts["runs with clocks that are set"] = 1
    takeovers = run.takeovers()
    if takeovers is not None:
        counts["runs with groups"] = 1
        counts["takeovers"] = takeovers
    broker = run.machine.broker
    if broker:
        counts["runs with a broker"] = 1
        counts["redelivered"] = broker.redelivered
        counts["returned"] = broker.returned
        counts["published twice"] = sum(count - 1 for count in broker.published.values())
    return counts


def shortest(
    result: Result, mutate: Callable[[], AbstractContextManager[None]] = nullcontext, tries: int = 60
) -> Result:
    """The same failure with as few faults as can be found, so that its trace is short."""
    best, plan = result, {fault.point: fault.kind for fault in result.faults}
    size = max(1, len(plan) // 2)
    while size and tries:
        indexes = sorted(plan)
        for start in range(0, len(indexes), size):
            smaller = {index: plan[index] for index in indexes if index not in indexes[start : start + size]}
            tries -= 1
            found = simulate(result.seed, smaller, mutate)
            if found.failure:
                best, plan = found, {fault.point: fault.kind for fault in found.faults}
                break
            if not tries:
                break
        else:
            size //= 2
    return best


def _steps(drawn: random.Random) -> list[Change]:
    """A rollout: the version gets some, perhaps more or less, and then all or nothing."""
    first, second = drawn.randint(1, 99), drawn.randint(1, 99)
    steps: list[Change] = [lambda one: one.start(NEW, first)]
    if drawn.random() < 0.5:
        steps.append(lambda one: one.shift(second))
    last: Change = Rollout.roll_back if drawn.random() < 0.5 else lambda one: one.promote(NEW)
    return [*steps, last]


def _settings(drawn: random.Random) -> list[tuple[float, float]]:
    """When the clock is set back, once or twice, and by how much."""
    times = sorted(START + SET_SECONDS * drawn.random() for _ in range(drawn.randint(1, 2)))
    return [(time, -HOUR * drawn.random()) for time in times]


def _deed(drawn: random.Random, serial: bool, about: Shape) -> str:
    """Poison and hangs cost many processes, so they are rare in most runs. Where several may write, SQLite cannot stand
    for the server that would end the transaction of one that hangs."""
    deed = "hot" if about is Shape.CONTENTION and drawn.random() < OFTEN_HOT else drawn.choice(DEEDS)
    if deed == "hang" and not serial:
        return ""
    deadly = about is Shape.SUSPECTS
    return deed if deed not in ("poison", "bomb", "hang") or deadly or drawn.random() < 0.1 else ""


@contextmanager
def quiet() -> Iterator[None]:
    """No logging; no collection in the middle of a run, whose finalizers would run where they like; short parking."""
    before = logging.root.manager.disable
    if before < logging.CRITICAL:  # all loggers forget what they know by this: a process of many runs does it once
        logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        with patch.object(relay, "PARK_SECONDS", 3.0):
            yield
    finally:
        gc.enable()
        if before < logging.CRITICAL:
            logging.disable(before)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one run."""
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        yield Path(folder)


@cache
def _folder() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def _template() -> bytes:
    """The file of a database with its schema. `staged` keeps the id of every message row that was ever committed,
    and `changes` what was there of an object before each change."""
    with scratch() as folder:
        path = folder / "template.db"
        store = open_store(f"sqlite:///{path}", SystemClock())
        store.schema.create_tables(Base.metadata)
        store.close()
        connection = sqlite_driver().connect(path)
        connection.executescript("""
            CREATE TABLE hot (count INTEGER);
            INSERT INTO hot VALUES (0);
            INSERT INTO uniques VALUES ('there');
            CREATE TABLE staged (copy TEXT PRIMARY KEY) WITHOUT ROWID;
            CREATE TRIGGER note AFTER INSERT ON flowkit_messages BEGIN INSERT INTO staged VALUES (new.copy); END;
            CREATE TABLE changes (number INTEGER PRIMARY KEY, key TEXT, before BLOB);
            CREATE TRIGGER made AFTER INSERT ON flowkit_objects
                BEGIN INSERT INTO changes (key) VALUES (new.key); END;
            CREATE TRIGGER changed AFTER UPDATE ON flowkit_objects
                BEGIN INSERT INTO changes (key, before) VALUES (old.key, old.value); END;
            PRAGMA journal_mode = WAL;
        """)
        connection.close()
        return path.read_bytes()
