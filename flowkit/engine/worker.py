"""A worker: one process that runs lanes, a relay and maintenance."""

import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from flowkit.app import App
from flowkit.engine.adoption import KnownApps
from flowkit.engine.async_lane import AsyncLane
from flowkit.engine.async_pipeline import AsyncPipeline
from flowkit.engine.deadlines import Deadlines
from flowkit.engine.directions import Directions
from flowkit.engine.dispatcher import Dispatcher
from flowkit.engine.figures import RecentFigures
from flowkit.engine.in_flight import Slots
from flowkit.engine.item import Item
from flowkit.engine.lane import Lane
from flowkit.engine.maintenance import Maintenance
from flowkit.engine.membership import Membership
from flowkit.engine.outages import WATCH_SECONDS, Outages
from flowkit.engine.pipeline import Pipeline
from flowkit.engine.readiness import Readiness
from flowkit.engine.relay import Relay
from flowkit.engine.versions import VersionedConsumer, Versions, named
from flowkit.errors import StoreLost
from flowkit.heap import give_back
from flowkit.loop import Loop
from flowkit.model.flow import Flow
from flowkit.ports import CANDIDATE, EXCHANGE, WorkerInfo
from flowkit.services import Services

_log = logging.getLogger("flowkit.worker")


class Worker:
    """Runs the flows of an app. `step()` does one round in the calling thread; `run()` repeats it on a pool of threads.

    `slots` is the place where the supervisor reads which messages ran when this process died.
    """

    def __init__(
        self, app: App, services: Services, flows: Iterable[Flow] | None = None, slots: Slots | None = None
    ) -> None:
        self.app = app
        self.services = services
        self.id = services.ids()
        self.crippled = False
        """Whether one of its threads died, so that the process has to be replaced."""
        self.lost = False
        """Whether its database was removed or replaced, so that this process can commit nothing more."""
        self.stopping = threading.Event()
        self._ended = threading.Event()
        self._slots = slots or Slots()
        self._slots.worker = self.id
        self._opened = ExitStack()
        store, transport, clock = services.store, services.transport, services.clock
        self.readiness = Readiness(self._slots, transport)
        chosen = list(flows or app.flows.values())
        _prepare(app, services, chosen)
        self.versions = _versions(app, services)
        self._figures = RecentFigures(clock)
        self._membership = self._join()
        self.versions.look()  # each change of the rollout from now on waits for this worker
        _warn_of_waiting(app, self.versions)
        provided = {kind: self._open(factory()) for kind, factory in app.provided.items()}
        self._stops: dict[str, str] = {}
        self.relay = Relay(store, transport, clock, self.id)
        self.directions = Directions(app, store)
        self._apps = KnownApps(store, clock)
        of_lanes = [flow for flow in chosen for _ in range(self.directions.many(flow))]
        self.lanes = [self._lane(flow, number, provided) for number, flow in enumerate(of_lanes)]
        self._slots.share(len(self.lanes))
        self.outages = Outages(self.readiness, self.stopping, services.random, self._lose)
        self.dispatcher = Dispatcher(
            self.lanes, self.directions, self.outages, self.relay, self.stopping, self._ended, self._cripple
        )
        self.deadlines = Deadlines(self.lanes, self.dispatcher, self.readiness, clock, self.stop)
        self.maintenance = Maintenance(
            app,
            services,
            self.id,
            lanes=self.lanes,
            dispatcher=self.dispatcher,
            directions=self.directions,
            versions=self.versions,
            figures=self._figures,
            apps=self._apps,
            membership=self._membership,
            readiness=self.readiness,
        )

    # ------------------------------------------------------------ assembly

    def _join(self) -> Membership:
        """Join the fleet."""
        services, settings = self.services, self.services.settings
        services.store.version = settings.version
        info = WorkerInfo(
            self.id, self.app.name, socket.gethostname(), os.getpid(), settings.group, settings.site, settings.version
        )
        return Membership(services.store, services.transport, services.clock, info, self.versions.epoch)

    @cached_property
    def _loop(self) -> Loop:
        """The event loop on which `async def` handlers run, and which the objects provided to them belong to."""
        loop = Loop("flowkit-async")
        self._opened.callback(loop.close)
        return loop

    def _open(self, made: Any) -> Any:
        if hasattr(made, "__enter__"):
            return self._opened.enter_context(made)
        if hasattr(made, "__aenter__"):
            return self._opened.enter_context(self._loop.hold(made))
        return made

    def _lane(self, flow: Flow, number: int, provided: dict[type, object]) -> Lane:
        store, transport, telemetry = self.services.store, self.services.transport, self.services.telemetry
        received = VersionedConsumer(
            self.versions, flow.name, lambda address: transport.consumer(address, self.id, flow.reach)
        )
        consumer = telemetry.consumer(received, flow.name, flow.source.name)
        pipeline = (AsyncPipeline if flow.concurrent else Pipeline)(
            flow=flow,
            store=store,
            transport=transport,
            consumer=consumer,
            call=telemetry.handler(flow.caller(provided, store.injects)),
            context=self.app.context(self.services),
            random=self.services.random,
            slot=self._slots.slot(number),
            lane=f"{self.id}-{number}",
            retention=self.app.retention,
            beside=lambda: self.versions.beside,
            apps=lambda: self._apps.names,
            observe=lambda items: self._observe(flow, received, items),
            halted=lambda: self.dispatcher.hushed or self.stopping.is_set() or self.directions.rests(flow),
            wake=self.wake,
        )
        if isinstance(pipeline, AsyncPipeline):
            return AsyncLane(
                pipeline,
                consumer,
                self.id,
                self._stops,
                self.relay.carried,
                self._loop,
                self._slots,
                self._heat_lane,
            )
        return Lane(pipeline, consumer, self.id, self._stops, self.relay.carried)

    def _observe(self, flow: Flow, consumer: VersionedConsumer, items: Sequence[Item]) -> None:
        self.services.telemetry.ended(flow.name, [item.outcome for item in items])
        if self.versions.beside:
            self._figures.note(items, [consumer.seconds(item.delivery) for item in items])

    # ------------------------------------------------------------ steps

    @property
    def state(self) -> str:
        """`starting`, `ready`, `unready` or `draining`."""
        return self.readiness.state

    @property
    def overdue(self) -> bool:
        """Whether a handler ran past its deadline, so that the process has to be replaced."""
        return self.deadlines.overdue

    def step(self) -> bool:
        """Do one round of everything, in the calling thread. Returns False if there was nothing to do. Blocks."""
        self.maintenance.tick()
        busy = self.relay.step()
        for lane in self.lanes:
            if self.directions.rests(lane.flow):
                lane.give_back()
            else:
                busy = lane.step() or busy
                busy = lane.step_alone() or busy
        return busy or any([lane.rest() for lane in self.lanes])

    def run(self, grace: float = 30.0, abandon: Callable[[], None] = lambda: None) -> bool:
        """Work until `stop()`, then finish within `grace` seconds. Returns whether every thread ended in time. Blocks.

        `abandon` ends the process at once. It is called when a handler past its deadline holds the transaction that
        every other writer waits for.
        """
        # Objects that are loaded now stay. A full collection that visits all of them blocks every thread for 100 ms.
        gc.collect()
        gc.freeze()
        give_back()
        watched = (self._ended, self.services.store.serial, abandon)
        threading.Thread(target=self.deadlines.guard, args=watched, name="flowkit-deadlines", daemon=True).start()
        threads = [
            threading.Thread(target=self.dispatcher.work, name=f"flowkit-{number}", daemon=True)
            for number in range(self.services.settings.threads)
        ]
        if self.services.transport.hops:
            threads.append(threading.Thread(target=self._send_due, name="flowkit-relay", daemon=True))
        for thread in threads:
            thread.start()
        self.readiness.judge()
        while not self.stopping.is_set():
            self.outages.guarded(self._watch, "broker" if self.services.transport.hops else "store")
        self.readiness.state = "unready" if self.overdue else "draining"
        return self._finish(threads, grace)

    def stop(self) -> None:
        """Make `run` return. Any thread or signal handler may call it. Does not block."""
        self.stopping.set()

    def wake(self, flows: set[str]) -> None:
        """Tell this worker and the others that new messages of these flows are committed."""
        self.dispatcher.heat(flows)
        self.services.store.notify(flows)

    def close(self) -> None:
        """Give back the messages that are held, and leave the fleet. No thread steps the worker any more. Blocks."""
        self._membership.end()  # it answers no other worker any more: the database forgets it
        with self._opened as last:
            last.callback(self._membership.leave)
            last.callback(self.relay.flush)
            for lane in self.lanes:
                last.callback(lane.drain)

    def _heat_lane(self, lane: Lane) -> None:
        self.dispatcher.heat_lane(lane)

    # ------------------------------------------------------------ threads

    def _watch(self) -> None:
        """Wait for news, and wake the lanes that have some."""
        transport = self.services.transport
        if not transport.hops:
            self.maintenance.tick()
        flows = {lane.flow.name for lane in self.lanes if not lane.left}
        places = {place for flow in flows for place in self.versions.places(flow)}
        self.dispatcher.heat({place.removesuffix(CANDIDATE) for place in transport.wait(WATCH_SECONDS, places)})

    def _send_due(self) -> None:
        """Send due rows by the relay until the worker stops. A thread of its own runs this, if the transport is not the
        store. It does the maintenance too, because that uses the connection on which it waits for the store's news."""
        while not self.stopping.is_set():
            self.outages.guarded(self.maintenance.tick, "store")
            if not self.outages.guarded(self.relay.step, "store"):
                self.outages.guarded(self._hear, "store")

    def _hear(self) -> None:
        self.relay.told = self.services.store.wait(WATCH_SECONDS) or ()

    def _finish(self, threads: list[threading.Thread], grace: float) -> bool:
        clock = self.services.clock
        end = clock.monotonic() + grace
        self.dispatcher.look_again()
        while any(thread.is_alive() for thread in threads) and clock.monotonic() < end:
            self.outages.guarded(self.maintenance.tick, "store")
            hung = self.deadlines.hung()
            if hung and self.dispatcher.busy <= hung:
                break
            for thread in threads:
                thread.join(0.05)
        self._ended.set()
        self.dispatcher.look_again()
        for thread in threads:
            if self.dispatcher.unfinished:  # `async def` handlers run, so the threads have to commit them
                thread.join(WATCH_SECONDS * 2)
        finished = not self.deadlines.hung() and not any(thread.is_alive() for thread in threads)
        if finished and not self.lost:
            self.close()
        return finished

    def _lose(self, error: StoreLost) -> None:
        if not self.lost:
            _log.error("app %s: this worker ends: %s", self.app.name, error)
        self.lost = True
        self.stop()

    def _cripple(self) -> None:
        self.crippled = True
        self.stop()


def _prepare(app: App, services: Services, flows: Sequence[Flow]) -> None:
    """Check the app and declare its flows at the transport, before the worker joins the fleet."""
    store, transport = services.store, services.transport
    subscribed: dict[str, list[str]] = {}
    for name, channel in store.subscribers.channels().items():
        subscribed.setdefault(channel, []).append(name)
    app.check(store.injects, subscribed)
    app.connect(services)
    shared = app.shared(store.subscribers.channels())
    transport.declare([flow.name for flow in flows], shared)
    for doubt in transport.doubts({flow.name: flow.deadline for flow in flows}):
        _log.warning("%s", doubt)
    if transport.hops:
        store.queue.unpark(
            [*app.flows, *(f + CANDIDATE for f in app.flows), *(EXCHANGE + one.channel for one in shared)]
        )
    elif shared:
        _log.warning(
            "other programs share %s, which need a broker to meet: what is sent there waits in the database until "
            "FLOWKIT_BROKER_URL is set", ", ".join(one.channel for one in shared)
        )  # fmt: skip


def _versions(app: App, services: Services) -> Versions:
    """The rollout of the app, in which the worker takes part as its version does."""
    settings = services.settings
    return Versions(services.store, app.context(services), app.name, settings.version, settings.lease, app.retention)


def _warn_of_waiting(app: App, versions: Versions) -> None:
    if versions.rollout is not None and versions.role == "none":
        _log.warning(
            "version %s waits: it has no share of the messages of app %s, whose baseline is version %s; see "
            "flowkit rollout", named(versions.version), app.name, named(versions.rollout.baseline)
        )  # fmt: skip
