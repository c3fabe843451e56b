"""A worker: one process that runs lanes, a relay and its upkeep."""

import gc
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from flowkit.app import App
from flowkit.config import Services
from flowkit.engine.adoption import app_of
from flowkit.engine.async_lane import AsyncLane
from flowkit.engine.async_pipeline import AsyncPipeline
from flowkit.engine.figures import RecentFigures
from flowkit.engine.in_flight import Slot, Slots, State
from flowkit.engine.item import Item
from flowkit.engine.lane import Lane
from flowkit.engine.pipeline import Pipeline
from flowkit.engine.reduction import shed
from flowkit.engine.relay import Relay
from flowkit.engine.versions import VersionedSource, Versions, named
from flowkit.errors import BrokerUnavailable, StoreConflict, StoreLost, Unavailable
from flowkit.flow import Flow
from flowkit.heap import give_back
from flowkit.loop import Loop
from flowkit.ports import CANDIDATE, DRAINED, EXCHANGE, LANES, MINIMUM, NORMAL, PAUSED, Retention, Store, WorkerInfo

BEAT_SECONDS = 1.0
CLEAN_SECONDS = 10.0
MUCH = 1000
"""A cleaning that removed so many rows has more to do, and goes on at once."""
WATCH_SECONDS = 0.25
"""How late a delayed message may be noticed, where nothing else wakes the worker."""
DEADLINE_STEP_SECONDS = 0.05
DEADLINE_STEPS = 100
"""So many looks in the time of the shortest deadline are enough."""
BACKOFF_SECONDS = (0.1, 5.0)
KNOWN_SECONDS = 3.0
"""A worker that could not record its heartbeat for so long may have been removed from the fleet by others."""
NAMES_SECONDS = 60.0
"""How often it is seen which apps the store has."""
MEETINGS = 5
"""How often strangers are asked again. Each time takes half a second."""
NAMED = 3
"""How many flows a state names."""
_log = logging.getLogger("flowkit.worker")


class Worker:
    """Runs the flows of an app. `step()` does one round in the calling thread; `run()` repeats it on a pool of threads.

    `slots` is where the supervisor reads which messages were running if this process dies.
    """

    def __init__(
        self, app: App, services: Services, flows: Iterable[Flow] | None = None, slots: Slots | None = None
    ) -> None:
        self.app = app
        self.services = services
        self.id = services.ids()
        self._state = "starting"
        self.overdue = False
        """Whether a handler ran past its deadline: the process has to be replaced."""
        self.crippled = False
        """Whether one of its threads died: the process has to be replaced."""
        self.lost = False
        """Whether the database was taken away from under it: this process can commit nothing any more."""
        self.stopping = threading.Event()
        self._ended = threading.Event()
        self._slots = slots or Slots()
        self._slots.worker = self.id
        self._opened = ExitStack()
        store, transport = services.store, services.transport
        subscribed: dict[str, list[str]] = {}
        for name, channel in store.subscribers.channels().items():
            subscribed.setdefault(channel, []).append(name)
        app.check(store.injects, subscribed)
        app.connect(services)
        shared = app.shared(store.subscribers.channels())
        transport.declare([flow.name for flow in flows or app.flows.values()], shared)
        for doubt in transport.doubts({flow.name: flow.deadline for flow in flows or app.flows.values()}):
            _log.warning("%s", doubt)
        if transport.lease:
            store.queue.unpark(
                [*app.flows, *(f + CANDIDATE for f in app.flows), *(EXCHANGE + one.channel for one in shared)]
            )
        elif shared:
            _log.warning(
                "other programs share %s, which need a broker to meet: what is sent there waits in the database until "
                "FLOWKIT_BROKER_URL is set", ", ".join(one.channel for one in shared)
            )  # fmt: skip
        settings = services.settings
        self.versions = Versions(
            store, app.context(services), app.name, settings.version, settings.lease, app.retention
        )
        self._figures = RecentFigures(services.clock)
        store.version = settings.version
        store.fleet.join(
            WorkerInfo(
                self.id, app.name, socket.gethostname(), os.getpid(), settings.group, settings.site, settings.version
            ),
            self.versions.epoch,
        )
        self._recorded = services.clock.monotonic()
        """When the store recorded this worker last."""
        self._meet_others()
        self.versions.look()  # whatever changes from now on waits for this worker
        if self.versions.rollout is not None and self.versions.role == "none":
            _log.warning(
                "version %s waits: it has no share of the messages of app %s, whose baseline is version %s; see "
                "flowkit rollout", named(settings.version), app.name, named(self.versions.rollout.baseline)
            )  # fmt: skip
        provided = {kind: self._open(factory()) for kind, factory in app.provided.items()}
        self._stops: dict[str, str] = {}
        self.relay = Relay(store, transport, services.clock, self.id)
        self.directions = store.directions.read()
        """What the fleet is directed to: (what, name) -> value."""
        self._apps = _apps(store)
        self._named = services.clock.monotonic()
        """When the apps of the store were read last."""
        self.shed: frozenset[str] = frozenset()
        """The flows that rest, because the service is reduced."""
        self.lanes = [
            self._lane(flow, number, provided)
            for number, flow in enumerate(
                flow for flow in (flows or app.flows.values()) for _ in range(self._many(flow))
            )
        ]
        self._slots.share(len(self.lanes))
        self._lanes: dict[str, list[Lane]] = {}
        for lane in self.lanes:
            self._lanes.setdefault(lane.flow.name, []).append(lane)
        self._beaten = self._looked = self._renewed = self._cleaned = float("-inf")
        self._failures: dict[str, int] = {}
        """What is away now -> how often it was found so."""
        self._changed = threading.Condition()
        self._hot: deque[Lane] = deque(self.lanes)
        self._running: set[Lane] = set()
        self._alone = False
        self._hushed = False
        """Whether a suspect waits until nothing else runs, so that nothing is begun."""

    @property
    def state(self) -> str:
        """starting, ready, unready or draining: told to the fleet by heartbeats, and to the supervisor at once."""
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self._slots.ready = state == "ready"

    @property
    def condition(self) -> str:
        """The state, with the flows that keep the worker from being ready."""
        hindered = sorted(self.services.transport.hindered)
        if self.state != "unready" or not hindered:
            return self.state
        more = f" and {len(hindered) - NAMED} more" if len(hindered) > NAMED else ""
        return f"unready: {', '.join(hindered[:NAMED])}{more}"

    @cached_property
    def _loop(self) -> Loop:
        """Where `async def` handlers run, and what is provided to them lives."""
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
        received = VersionedSource(
            self.versions, flow.name, lambda address: transport.source(address, self.id, flow.reach)
        )
        source = telemetry.source(received, flow.name, flow.source.name)
        pipeline = (AsyncPipeline if flow.concurrent else Pipeline)(
            flow=flow,
            store=store,
            transport=transport,
            source=source,
            call=telemetry.handler(flow.caller(provided, store.injects)),
            context=self.app.context(self.services),
            random=self.services.random,
            slot=self._slots.slot(number),
            lane=f"{self.id}-{number}",
            retention=self.app.retention,
            beside=lambda: self.versions.beside,
            apps=lambda: self._apps,
            observe=lambda items: self._observe(flow, received, items),
            halted=lambda: self._hushed or self.stopping.is_set() or self._rests(flow),
            wake=self.wake,
        )
        if isinstance(pipeline, AsyncPipeline):
            return AsyncLane(
                pipeline,
                source,
                self.id,
                self._stops,
                self.relay.carried,
                self._loop,
                self._slots,
                self._heat_lane,
            )
        return Lane(pipeline, source, self.id, self._stops, self.relay.carried)

    def _observe(self, flow: Flow, source: VersionedSource, items: Sequence[Item]) -> None:
        self.services.telemetry.ended(flow.name, [item.outcome for item in items])
        if self.versions.beside:
            self._figures.note(items, [source.seconds(item.delivery) for item in items])

    def _meet_others(self) -> None:
        """See that every worker which receives for this store is known to its database. A copy of that database has
        workers of its own, and each side would apply a part of the messages. Raises BrokerUnavailable, and the worker
        is started again: it may be that the other side ends."""
        store, strangers = self.services.store, {}
        for _ in range(MEETINGS):  # a worker that is just leaving, or has just joined, is known a moment later
            found = self.services.transport.others(self.id, self._is_known)
            known = store.fleet.members() if found else set()
            strangers = {id: where for id, where in found.items() if id not in known}
            if not strangers:
                return
        store.fleet.leave(self.id)
        id, where = next(iter(strangers.items()))
        raise BrokerUnavailable(
            f"{len(strangers)} worker(s) at the broker receive for this store and are unknown to its database, such as "
            f"worker {id} ({where}): one of two databases is a copy of the other, and each would apply a part of the "
            "messages; stop those workers, or let the copy be a store of its own: flowkit db adopt --apart"
        )

    def _is_known(self) -> bool:
        """Whether the database has recorded this worker lately. Any thread may ask."""
        return self.services.clock.monotonic() - self._recorded < KNOWN_SECONDS

    # ------------------------------------------------------------ steps

    def step(self) -> bool:
        """One round of everything, in this thread. False when nothing was to be done."""
        self.tick()
        busy = self.relay.step()
        for lane in self.lanes:
            if self._rests(lane.flow):
                lane.give_back()
            else:
                busy = lane.step() or busy
                busy = lane.step_alone() or busy
        return busy or any([lane.rest() for lane in self.lanes])

    def tick(self) -> None:
        """What is due of the upkeep: heartbeat, renewal of leases, retention."""
        now = self.services.clock.monotonic()
        store = self.services.store
        beat = now - self._beaten >= BEAT_SECONDS
        if beat or (self.versions.rollout is not None and now - self._looked >= WATCH_SECONDS):
            self._looked, before = now, self.versions.state
            beat = self.versions.look() or beat
            if before != self.versions.state:
                self._figures.begin()
                self._heat({lane.flow.name for lane in self.lanes})
        if beat:
            waits = self.state == "ready" and self.versions.role == "none"
            store.check_place()
            store.fleet.beat(
                self.id, "waiting" if waits else self.condition, self.versions.epoch, self._figures.figures()
            )
            were = self.directions, self.shed
            self.directions = store.directions.read()
            if now - self._named >= NAMES_SECONDS:
                self._apps, self._named = _apps(store), now
            self.shed = self._shed()
            if self.state == "ready" and not waits and self._suffices():
                store.uptime.note(self.app.name)
            if were != (self.directions, self.shed):
                self._heat({lane.flow.name for lane in self.lanes})
                with self._changed:  # some of them may be hot, and go on now
                    self._changed.notify_all()
            self._beaten = self._recorded = now
        if now - self._renewed >= self.services.settings.lease / 3:
            rows = [(one.row, one.deliveries) for lane in self.lanes for one in lane.in_hand if one.row is not None]
            if rows:
                store.queue.renew(rows, self.services.settings.lease)
            self._renewed = now
        if now - self._cleaned >= CLEAN_SECONDS:
            self._cleaned = now  # also where it fails: messages do not wait for what only clears away
            app = self.app
            removed = store.retention.clean(
                Retention(app.name, list(app.flows), list(app.channels), app.retention, app.dead_letter_hold), self.id
            )
            if removed >= MUCH:
                self._cleaned = float("-inf")

    def watch_deadlines(self) -> None:
        """See whether a handler runs past its deadline. Its thread cannot be ended: the process has to be replaced."""
        for lane in self.lanes:
            slot = self._late(lane)
            if slot is not None and not self.overdue:
                if not self._alone:  # who runs alone is charged for the end of this process in any case
                    slot.mark(State.OVERDUE)
                self.overdue = True
                self.state = "unready"
                _log.error(
                    "flow %s: its handler runs past its deadline of %gs; this worker finishes its other messages and "
                    "is replaced; bound the handler's waiting, or raise deadline=", lane.flow.name, lane.flow.deadline
                )  # fmt: skip
                self.stop()

    # ------------------------------------------------------------ threads

    def run(self, grace: float = 30.0, abandon: Callable[[], None] = lambda: None) -> bool:
        """Work until `stop()`, then finish, at most `grace` seconds. Blocks. Whether every thread ended in time.

        `abandon` ends the process at once. It is called when a handler past its deadline holds the transaction that
        every other writer waits for.
        """
        # What is loaded stays: a full collection that looks at all of it holds up every thread for 100 ms.
        gc.collect()
        gc.freeze()
        give_back()
        threading.Thread(target=self._guard_deadlines, args=(abandon,), name="flowkit-deadlines", daemon=True).start()
        threads = [
            threading.Thread(target=self._work, name=f"flowkit-{number}", daemon=True)
            for number in range(self.services.settings.threads)
        ]
        if self.services.transport.lease:
            threads.append(threading.Thread(target=self._send_due, name="flowkit-relay", daemon=True))
        for thread in threads:
            thread.start()
        self._judge()
        while not self.stopping.is_set():
            self._guarded(self._watch, "broker" if self.services.transport.lease else "store")
        self.state = "unready" if self.overdue else "draining"
        return self._finish(threads, grace)

    def stop(self) -> None:
        """Make `run` return. Any thread or signal handler may call it; does not block."""
        self.stopping.set()

    def wake(self, flows: set[str]) -> None:
        """New messages of these flows are committed."""
        self._heat(flows)
        self.services.store.notify(flows)

    def close(self) -> None:
        """Give back what is held and leave the fleet. Nobody steps the worker any more."""
        self._recorded = float("-inf")  # the database forgets this worker, and others would take it for a stranger
        with self._opened as last:
            last.callback(self.services.store.fleet.leave, self.id)
            last.callback(self.relay.flush)
            for lane in self.lanes:
                last.callback(lane.drain)

    def _guard_deadlines(self, abandon: Callable[[], None]) -> None:
        shortest = min((lane.flow.deadline for lane in self.lanes), default=BEAT_SECONDS)
        step = min(BEAT_SECONDS, max(DEADLINE_STEP_SECONDS, shortest / DEADLINE_STEPS))
        while not self.overdue:
            self.watch_deadlines()
            if not self.overdue and self._ended.wait(step):
                return
        if self.services.store.serial:
            abandon()

    def _finish(self, threads: list[threading.Thread], grace: float) -> bool:
        clock = self.services.clock
        end = clock.monotonic() + grace
        with self._changed:
            self._changed.notify_all()
        while any(thread.is_alive() for thread in threads) and clock.monotonic() < end:
            self._guarded(self.tick, "store")
            hung = self._hung()
            if hung and self._running | {lane for lane in self.lanes if lane.unfinished} <= hung:
                break
            for thread in threads:
                thread.join(0.05)
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        for thread in threads:
            if self._unfinished:  # handlers are at work, but not this thread
                thread.join(WATCH_SECONDS * 2)
        finished = not self._hung() and not any(thread.is_alive() for thread in threads)
        if finished and not self.lost:
            self.close()
        return finished

    def _hung(self) -> set[Lane]:
        """The lanes that a handler past its deadline holds up: with an `async def` one, all that share its loop."""
        hung = {lane for lane in self.lanes if self._late(lane)}
        concurrent = {lane for lane in self.lanes if isinstance(lane, AsyncLane)}
        return hung | concurrent if hung & concurrent else hung

    @property
    def _unfinished(self) -> bool:
        """Whether `async def` handlers are at work, or wait for their commit."""
        return any(lane.unfinished for lane in self.lanes)

    def _late(self, lane: Lane) -> Slot | None:
        return lane.late(self.services.clock.monotonic())

    def _watch(self) -> None:
        """Wait for news and heat the lanes that have some."""
        if not self.services.transport.lease:
            self.tick()
        flows = {lane.flow.name for lane in self.lanes if not lane.left}
        places = {place for flow in flows for place in self.versions.places(flow)}
        self._heat({place.removesuffix(CANDIDATE) for place in self.services.transport.wait(WATCH_SECONDS, places)})

    def _send_due(self) -> None:
        """The life of the thread that sends what others, or nobody, will: on a transport that is not the store. The
        upkeep is its own then: it uses the connection on which this thread waits for the store's news."""
        while not self.stopping.is_set():
            self._guarded(self.tick, "store")
            if not self._guarded(self.relay.step, "store"):
                self._guarded(self._hear, "store")

    def _hear(self) -> None:
        self.relay.told = self.services.store.wait(WATCH_SECONDS) or ()

    def _heat(self, flows: set[str]) -> None:
        """Wake the lanes of these flows that hold something, else one of each: an idle one, or one that looks again
        when it is done."""
        with self._changed:
            for flow in flows:
                useful = [lane for lane in self._lanes.get(flow, ()) if lane.unfinished or not lane.left]
                cold = [lane for lane in useful if lane not in self._hot]
                idle = [lane for lane in cold if lane not in self._running]
                woken = [lane for lane in cold if lane.source.stocked] or idle[:1] or cold[:1]
                self._hot += woken
                self._changed.notify(len(woken))

    def _heat_lane(self, lane: Lane) -> None:
        """Wake this very lane: what it would find is its own."""
        with self._changed:
            if lane not in self._hot:
                self._hot.append(lane)
                self._changed.notify()

    def _work(self) -> None:
        """A thread's life: take the next lane that may have work, step it, and keep it hot while it expects more."""
        while not self.stopping.is_set() or (self._unfinished and not self._ended.is_set()):
            lane = self._next()
            if lane is None:
                continue
            try:
                if self._rests(lane.flow) and not lane.unfinished:
                    self._guarded(lane.give_back, "store")
                else:
                    self._guarded(lane.step_alone if self._alone else lane.step, "store")
            except BaseException:
                # Not an Exception: what ran last is suspected of it, as of any death of its process.
                lane.pipeline.slot.mark(State.ALONE if self._alone else State.RUNNING)
                _log.exception("flow %s: a thread of this worker died; the worker is replaced", lane.flow.name)
                self.crippled = True
                self.stop()
                return
            finally:
                with self._changed:
                    self._running.discard(lane)
                    self._alone = False
                    if lane.expectant and lane not in self._hot:
                        self._hot.append(lane)
                    if lane.full:
                        self._heat({lane.flow.name})
                    self._changed.notify_all()

    def _next(self) -> Lane | None:
        """The next hot lane that nobody runs; a lane with suspects runs when nobody else does, nor any handler."""
        with self._changed:
            idle = [lane for lane in self._hot if lane not in self._running]
            if self.stopping.is_set() or self.directions:
                ending = self.stopping.is_set()
                idle = [lane for lane in idle if lane.unfinished or not (ending or self._is_idle(lane))]
            suspect = next((lane for lane in idle if lane.suspects), None)
            self._hushed = suspect is not None
            alone = suspect is not None and not self._running and not any(one.running for one in self.lanes)
            if suspect is None:
                lane = next(iter(idle), None)
            else:  # nobody else starts until it ran; what has begun comes to its end
                lane = suspect if alone else next((one for one in idle if one.running), None)
            held_back = self.relay.clogged and not self.stopping.is_set()  # what has begun is finished all the same
            if lane is None or self._alone or held_back:
                soon = held_back or self.stopping.is_set()
                self._changed.wait(WATCH_SECONDS if soon else BEAT_SECONDS)
                return None
            self._hot.remove(lane)
            self._running.add(lane)
            self._alone = alone
            return lane

    def _is_idle(self, lane: Lane) -> bool:
        """Whether a lane rests, and has nothing to give back."""
        return self._rests(lane.flow) and not (lane.held or lane.suspects)

    def _rests(self, flow: Flow) -> bool:
        """Whether a flow, or the app, is paused: it begins nothing, and finishes what it has begun."""
        return bool(self.directions) and (self._directed(PAUSED, flow.name) or flow.name in self.shed)

    @property
    def rests(self) -> list[tuple[str, str]]:
        """What of this app is paused or drained by direction: (what, name)."""
        mine = {self.app.name, *self.app.flows}
        return sorted((what, name) for what, name in self.directions if what in (PAUSED, DRAINED) and name in mine)

    def refuses(self, flow: str = "") -> str:
        """Why a flow, or each flow of the app, gets nothing from outside now; empty while it does."""
        if not self.directions:
            return ""
        if self._directed(DRAINED, flow):
            return "drained"
        return "shed, for fewer workers are ready than the normal service takes" if flow in self.shed else ""

    def _directed(self, what: str, flow: str) -> bool:
        """Whether the fleet is directed to this, for a flow or for the app."""
        return (what, flow) in self.directions or (what, self.app.name) in self.directions

    def _suffices(self) -> bool:
        """Whether enough workers are ready for the minimum service. One is, where nothing else is said."""
        minimum = self.directions.get((MINIMUM, self.app.name), 1)
        return minimum <= 1 or self.services.store.fleet.ready(self.app.name) >= minimum

    def _shed(self) -> frozenset[str]:
        name = self.app.name
        normal = self.directions.get((NORMAL, name))
        if normal is None:
            return frozenset()
        minimum = self.directions.get((MINIMUM, name), 1)
        found = shed(self.app.flows.values(), self.services.store.fleet.ready(name), normal, minimum)
        if found != self.shed:
            _log.warning(
                "app %s: %s", name, f"reduced service; shed: {', '.join(sorted(found))}" if found else "full service"
            )
        return found

    def _many(self, flow: Flow) -> int:
        """How many lanes a flow has."""
        return self.directions.get((LANES, flow.name)) or flow.lanes(self.services.store.serial)

    def _lose(self, error: StoreLost) -> None:
        if not self.lost:
            _log.error("app %s: this worker ends: %s", self.app.name, error)
        self.lost = True
        self.stop()

    def _judge(self) -> None:
        """Nothing is away: the worker is ready, unless one of its flows cannot receive."""
        self.state = "unready" if self.services.transport.hindered else "ready"

    def _guarded(self, step: Callable[[], Any], *needs: str) -> Any:
        """Run a step that needs these services; while one is away wait with backoff and jitter, and say so once."""
        try:
            result = step()
        except StoreConflict as error:
            _log.info("the store is busy: %s; this is tried again", error)
            return True
        except Unavailable as error:
            missed = "broker" if isinstance(error, BrokerUnavailable) else "store"
            if isinstance(error, StoreLost):
                self._lose(error)
            elif missed not in self._failures:
                _log.error("the %s is away: %s; nothing is acknowledged until it is back", missed, error)
        except Exception:
            missed = "step"
            _log.exception("a step failed, and is tried again")
        else:
            for name in (*needs, "step"):
                if self._failures.pop(name, 0) and name != "step":
                    _log.info("the %s is back", name)
            if not self._failures and not self.stopping.is_set():
                self._judge()
            return result
        self.state = "unready"
        self._failures[missed] = failures = self._failures.get(missed, 0) + 1
        # A look whether the broker is back costs nothing: its transport reconnects with a backoff of its own.
        first, most = (WATCH_SECONDS, WATCH_SECONDS) if missed == "broker" else BACKOFF_SECONDS
        self.stopping.wait(min(most, first * 2 ** min(failures, 10)) * self.services.random())
        return True


def _apps(store: Store) -> frozenset[str]:
    """The apps that have flows in a store, and those that publish there."""
    return frozenset(map(app_of, (*store.subscribers.channels(), *store.subscribers.publishers())))
