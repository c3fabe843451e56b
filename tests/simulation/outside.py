"""The actors outside of a run: clients that publish, an operator, and a rollout."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from flowkit import App
from flowkit.errors import FlowKitError, OutcomeUnknown
from flowkit.model.outbox import compose
from flowkit.ports import CANDIDATE, Rollout
from flowkit.publisher import Publisher
from tests.simulation.fleet import LEASE_SECONDS, Fleet, Machine, Role
from tests.simulation.shop import APP, Order
from tests.simulation.world import Process

Change = Callable[[Rollout], Rollout]
NEW = "v2"
CONTRADICTED = 5
"""Under every fifth name another body is sent as well."""
KEYS = 3
"""So few that messages share them."""


class Client:
    """Publishes orders from a process of its own, which may die at it, and logs what it was told."""

    def __init__(self, machine: Machine, app: App, name: str, orders: Sequence[Order], pause: float) -> None:
        """`pause`: at most so many seconds are between two orders."""
        self._machine = machine
        self._pause = pause
        self._app = app
        self._name = name
        self.todo = list(orders)
        self.log: dict[str, str] = {}
        """Name -> ok, unknown or fail: what it may believe. Once unknown, no later failure makes it a fail."""
        self.refused: dict[str, float] = {}
        """Name -> when it was told last that nothing of it was accepted."""
        self.swallowed: list[str] = []
        """Names under which another body was accepted."""
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
                publisher.publish([compose(context, channel(order, key=_key(order)), "client", id=order.name)])
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
            if int(order.name[1:]) % CONTRADICTED == 0:
                other = order.model_copy(update={"deed": "another"})
                # It may fail for other reasons too: it must not succeed.
                with suppress(FlowKitError):
                    publisher.publish([compose(context, channel(other, key=_key(order)), "client", id=order.name)])
                    self.swallowed.append(order.name)
            world.sleep(self._pause * world.random.random())


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


class Deployer:
    """Rolls a version out beside the other one, step by step, from a process that may die at it."""

    def __init__(self, fleet: Fleet, workers: int, steps: Sequence[Change]) -> None:
        self._fleet = fleet
        self._workers = workers
        self._steps = list(steps)
        self._process: Process
        self.finished = False
        self.start()

    def start(self) -> None:
        self._process = Process(self._fleet.machine.world, "deployer")
        self._process.onto_death.append(self._again)
        self._process.spawn("main", self._deploy)

    def _again(self) -> None:
        if not (self.finished or self._fleet.machine.world.closing):
            self.start()

    def _deploy(self) -> None:
        world = self._fleet.machine.world
        services = self._fleet.machine.services(self._process)
        world.sleep(world.random.random())
        if all(one.role.version != NEW for one in self._fleet.instances):
            self._fleet.add(Role(version=NEW), self._workers)
        while not self.finished:
            with suppress(FlowKitError):  # it is looked at again
                self._step(services.store, services.transport)
            world.sleep(0.2 * world.random.random())

    def _step(self, store: Any, transport: Any) -> None:
        """See whether the last change is in force, and then make the next one."""
        rollout = store.rollouts.read(APP, LEASE_SECONDS)
        ready = any(one.version == NEW and one.state in ("ready", "waiting") for one in store.ledger.workers())
        if rollout is None or not rollout.settled or not ready:
            return
        if not self._steps:
            self._fleet.remove({"v1", NEW}.difference({rollout.baseline}).pop())
            self.finished = True
            return
        wanted = self._steps[0](rollout)
        if wanted[:3] == rollout[:3]:  # it is made, perhaps by the process that died at it
            self._steps.pop(0)
            return
        transport.declare([flow + CANDIDATE for flow in self._fleet.app.flows])
        store.rollouts.change(APP, list(self._fleet.app.flows), wanted)


def _key(order: Order) -> str:
    return f"k{int(order.name[1:]) % KEYS}"
