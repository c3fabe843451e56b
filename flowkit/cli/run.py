"""`flowkit run`: the supervisor, and the worker process that it starts."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from flowkit import duration
from flowkit.app import App
from flowkit.cli import keys
from flowkit.cli.directed import Directed
from flowkit.cli.ending import STEP_SECONDS, Ending, end, end_after
from flowkit.cli.idle import Idle
from flowkit.cli.init import reap_orphans
from flowkit.cli.load import load, refuse_green_threads
from flowkit.cli.logs import log
from flowkit.cli.signals import Signals, die_with_parent, name_parent
from flowkit.cli.subscriptions import orphans
from flowkit.cli.systemd import ServiceManager
from flowkit.config import Services, Settings, SystemClock, connect, doubts, open_store
from flowkit.continuity.standby import Standby, stand_alone
from flowkit.engine.slots import Slots
from flowkit.engine.supervisor import COMMAND, LOST, REPLACE, SLOTS_VARIABLE, STOPPED, Supervisor
from flowkit.engine.versions import named
from flowkit.engine.worker import Worker
from flowkit.errors import ConfigError, StoreConflict, StoreOutdated, Unavailable
from flowkit.message import new_id
from flowkit.ports import Fence, WorkerInfo
from flowkit.telemetry import configure
from flowkit.url import mask
from flowkit.web.agent import Agent
from flowkit.web.listen import BACKLOG, bind, listen, named_place

WAIT_SECONDS = 0.02
START_SECONDS = 10.0
"""A supervisor tries for so long to reach what it needs as it starts."""
AGAIN_SECONDS = 0.25
STOPPED_SECONDS = 0.2
HTTP_VARIABLE, ADMIN_VARIABLE = "FLOWKIT_HTTP_SOCKET", "FLOWKIT_ADMIN_SOCKET"
"""The open files of the sockets that the supervisor's workers share: for clients, and for operators."""
ADMIN_PORTS = 1000
"""Operators are served on a port that is so much higher than that of clients, unless --admin says where."""
NO_ADMIN = "none"
"""The value of --admin by which operators are not served."""
SPARE = "standby"
"""The group of instances that are meant as spare ones."""
LATE_SECONDS = 1.0
"""Granted to a worker beyond its grace before it ends itself."""
T = TypeVar("T")
_log = logging.getLogger("flowkit.run")


class Options(NamedTuple):
    """How an app is run."""

    workers: int
    flows: list[str]
    until_idle: bool
    grace: str
    http: str
    admin: str
    agent: str
    drain: str
    standby: str
    group: str
    site: str
    version: str

    def over(self, settings: Settings) -> Settings:
        """The settings, with what is given here."""
        given = {name: getattr(self, name) for name in ("group", "site", "version") if getattr(self, name)}
        if self.standby != "none" and not (self.group or settings.group):
            given["group"] = SPARE
        return settings.model_copy(update=given)


def run(name: str, options: Options) -> int:
    """Run an app: as a worker where a supervisor started this process, else as its supervisor. Returns the exit."""
    surroundings = dict(os.environ)
    descriptor = os.environ.pop(SLOTS_VARIABLE, "")
    if descriptor:
        signals = Signals()
        die_with_parent()
    settings = options.over(Settings.read())
    log(settings)
    grace = duration.seconds(options.grace, "--grace")
    if options.http and duration.seconds(options.drain, "--drain") > grace:
        raise ConfigError(f"--drain {options.drain} is longer than --grace {options.grace}; drain is a part of it")
    if options.admin and not options.http:
        raise ConfigError("--admin is served beside --http; give both, or leave --admin out")
    if settings.group and options.until_idle:
        raise ConfigError("--until-idle ends what is idle, and a spare instance always is; leave out one of the two")
    if options.standby == "warm" and not descriptor:
        return _watch(name, settings, grace, {**surroundings, "FLOWKIT_GROUP": settings.group})
    app = load(name)
    refuse_green_threads(name)
    configure(app.name)
    if descriptor:
        services = _join(settings)
        slots = Slots(int(descriptor))
        os.close(int(descriptor))  # it is mapped, and no program that a handler starts is to have it
        return _work(app, services, options, grace, slots, signals)
    services = _patiently(lambda: connect(settings))
    try:
        return _supervise(app, services, options, grace)
    finally:
        services.close()


def _join(settings: Settings) -> Services:
    """The services of a worker. A file is made by its supervisor only, which may be of a version before this one."""
    with suppress(StoreOutdated):
        return connect(settings, create=False)
    with closing(open_store(settings, check=False, create=False)) as store:
        store.schema.upgrade()
    return connect(settings, create=False)


def _work(app: App, services: Services, options: Options, grace: float, slots: Slots, signals: Signals) -> int:
    """The life of a worker process."""
    if services.settings.group and not _let_begin(app, services, slots, signals):
        services.close()
        return 0
    store: Any = services.store
    store.schema.check_tables(app.name, app.metadata)  # this may be another version than its supervisor has looked at
    keys.note(app, services)
    worker = Worker(app, services, app.select(options.flows) if options.flows else None, slots)
    if not services.settings.group:
        try:
            # From now on no group becomes active: at first by this lease, and then because of this worker.
            stand_alone(services.store, app.name, services.settings.group_lease)
        except ConfigError:
            worker.close()
            raise
    front = None
    if options.http:
        from flowkit.web.front import Front

        admin = os.environ.pop(ADMIN_VARIABLE, "")
        front = Front(app, services, worker, int(os.environ.pop(HTTP_VARIABLE)), int(admin) if admin else None)
        drain = duration.seconds(options.drain, "--drain")
        signals.call(lambda: front.leave(drain, grace))
        signals.call_at_hangup(lambda: front.leave(0, grace))  # siblings take what comes
    else:
        signals.call(worker.stop)
        signals.call_at_hangup(worker.stop)
    if options.until_idle:
        threading.Thread(target=_end_when_stopped, args=(worker,), name="flowkit-stopped", daemon=True).start()
    threading.Thread(target=_keep_grace, args=(worker, grace), name="flowkit-stopping", daemon=True).start()
    # The supervisor charges the message of a handler that hangs in a thread, which cannot be ended.
    abandon = partial(end, REPLACE)
    ended = worker.run(grace, abandon)
    if front is not None:
        front.close(grace)
    if worker.lost:
        slots.clear()  # nobody is to blame
        end(LOST)
    if worker.overdue or worker.crippled or not ended:
        abandon()
    services.telemetry.close()
    services.close()
    signals.ignore()
    return STOPPED if any(lane.stopped for lane in worker.lanes) else 0


def _let_begin(app: App, services: Services, slots: Slots, signals: Signals) -> bool:
    """Wait, with everything loaded, until the group of this worker is active. False when it is asked to end instead."""
    services.store.subscribers.channels()  # the connection is there
    slots.ready = True
    while not slots.token:
        if signals.asked.wait(WAIT_SECONDS) or signals.hangup.is_set():
            return False
    slots.ready = False
    services.store.fence = Fence(app.name, services.settings.group, slots.token)
    return True


def _watch(name: str, settings: Settings, grace: float, surroundings: dict[str, str]) -> int:
    """The life of a warm spare: a small process that has not loaded the app, and becomes an instance when the lease of
    the active group is over. That it can is seen before, in a process of its own."""
    described = subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, "describe", name, "--json"], stdout=subprocess.PIPE, check=False
    )
    if described.returncode:
        return described.returncode
    app = json.loads(described.stdout)["app"]
    signals, manager, store = Signals(), ServiceManager(), open_store(settings)
    signals.call(lambda: end_after(grace, 0, f"this spare is ended, because it did not finish within {grace:g}s"))
    watch = Standby(store, SystemClock(), _info(new_id(), app, settings), settings.group_lease, spare=True, takes=False)
    try:
        while not watch.over:
            if signals.asked.wait(STEP_SECONDS):
                return 0
            manager.step(True)
            reap_orphans(())
    finally:
        watch.close()
        store.close()
    _log.warning("app %s: no group is active; this instance starts", app)
    logging.shutdown()
    os.execve(sys.executable, [*COMMAND, *sys.argv[1:], "--standby", "none"], surroundings)  # noqa: S606 - our own


def _info(id: str, app: str, settings: Settings) -> WorkerInfo:
    return WorkerInfo(id, app, socket.gethostname(), os.getpid(), settings.group, settings.site, settings.version)


def _keep_grace(worker: Worker, grace: float) -> None:
    """See to it that a worker that is to stop ends, whatever hangs: a database, or a thread of a handler."""
    worker.stopping.wait()
    status = LOST if worker.lost else REPLACE
    end_after(
        grace + LATE_SECONDS, status, f"this worker is ended, because it did not finish within {grace:g}s: does the "
        "database hang, or a thread that a handler started? Its messages are taken over"
    )  # fmt: skip


def _end_when_stopped(worker: Worker) -> None:
    """End a worker of which a flow stopped: what that flow holds would stay pending, and never be idle."""
    while not worker.stopping.wait(STOPPED_SECONDS):
        if any(lane.stopped for lane in worker.lanes):
            worker.stop()


def _supervise(app: App, services: Services, options: Options, grace: float) -> int:
    """The life of the supervisor."""
    store: Any = services.store
    _patiently(lambda: _check(app, services))
    chosen = [flow.name for flow in (app.select(options.flows) if options.flows else app.flows.values())]
    signals, manager = Signals(), ServiceManager()
    name_parent()
    serving = _bind(options)
    supervisor = Supervisor(
        [*COMMAND, *sys.argv[1:]],
        options.workers,
        store,
        services.clock,
        services.random,
        [one.fileno() for one in serving],
    )
    ending = Ending(supervisor, grace, signals)
    standby = _patiently(lambda: _standby(app, services, options.standby != "none"))
    if standby is None:
        _serve(serving)
    for one, whom in zip(serving, ("", " operators at"), strict=False):
        _log.info("app %s: serves%s http://%s", app.name, whom, named_place(one))
    broker = bool(services.settings.broker_url or services.settings.drain_url)
    idle = Idle(store, services.transport, chosen, broker) if options.until_idle else None
    _log.info(
        "app %s: %d flow(s) in %d worker process(es) on %s",
        app.name, len(chosen), options.workers, mask(services.settings.database_url),
    )  # fmt: skip
    directed = Directed(services, app, chosen, options.workers, supervisor)
    agent = None
    if options.agent:
        agent = Agent(listen(options.agent, "--agent"), lambda: _capacity(supervisor, standby, directed.share))
    try:
        while supervisor.step() and not signals.asked.wait(STEP_SECONDS):
            reap_orphans(supervisor.pids)
            directed.step()
            manager.step(supervisor.ready == 1)
            if standby is not None and standby.token != supervisor.token:
                _follow(standby.token, supervisor, serving)
            if idle is not None and idle.reached():
                break
            if signals.hangup.is_set():
                signals.hangup.clear()
                _log.info("the workers are replaced, one by one")
                supervisor.roll()
        manager.stopping()
        for one in serving:
            one.close()  # or who connects once the workers have closed theirs would wait for nobody
        return ending.wait()
    finally:
        supervisor.kill()
        supervisor.close()
        if agent is not None:
            agent.close()
        if standby is not None:
            standby.close()
        signals.ignore()


def _bind(options: Options) -> list[socket.socket]:
    """The sockets that the workers are to serve: for clients and, by default on loopback, for operators."""
    if not options.http:
        return []
    clients = bind(options.http, "--http")
    os.environ[HTTP_VARIABLE] = str(clients.fileno())
    if options.admin == NO_ADMIN:
        return [clients]
    admin = options.admin or f"127.0.0.1:{clients.getsockname()[1] + ADMIN_PORTS}"
    operators = bind(admin, "--admin" if options.admin else "--admin (by default the port of --http + 1000)")
    os.environ[ADMIN_VARIABLE] = str(operators.fileno())
    return [clients, operators]


def _patiently(step: Callable[[], T]) -> T:
    """Do a step of a supervisor's start, and again for START_SECONDS while a service cannot be reached: one connection
    that is cut ends no start. Raises what it raised last. Blocks."""
    end, told = time.monotonic() + START_SECONDS, ""
    while True:
        try:
            return step()
        except (Unavailable, StoreConflict) as error:
            if time.monotonic() > end:
                raise
            if str(error) != told:
                _log.warning("cannot start yet, and try again: %s", error)
            told = str(error)
        time.sleep(AGAIN_SECONDS)


def _check(app: App, services: Services) -> None:
    """Find mistakes before any worker starts, so that they are told once. Raises ConfigError and DefinitionError."""
    store: Any = services.store
    subscribed: dict[str, list[str]] = {}
    for flow, channel in store.subscribers.channels().items():
        subscribed.setdefault(channel, []).append(flow)
    app.check(store.injects, subscribed)
    store.schema.check_tables(app.name, app.metadata)
    _check_channels(app, services)
    app.connect(services)
    for line in (*doubts(), *store.doubts(), *keys.doubts(app, services), *orphans(app, services.store)):
        _log.warning("%s", line)


def _standby(app: App, services: Services, spare: bool) -> Standby | None:
    """How an instance of a group knows whether that is active. Raises ConfigError where groups and instances without
    one would work beside each other: these are not fenced."""
    settings = services.settings
    store: Any = services.store
    if not settings.group:
        stand_alone(store, app.name, settings.group_lease)
        return None
    loose = [one for one in store.ledger.workers() if one.app == app.name and not one.group]
    if loose and any(one.silent < settings.group_lease for one in loose):
        raise ConfigError(
            f"{len(loose)} worker(s) of app {app.name} run without a group, and would not be kept from writing once "
            "another one is active; start them with --group"
        )
    return Standby(store, services.clock, _info(services.ids(), app.name, settings), settings.group_lease, spare)


def _check_channels(app: App, services: Services) -> None:
    """Raise ConfigError where another version of the app would lose what comes to one of its flows: a flow has one
    channel, and that would be this version's from now on."""
    settings, store = services.settings, services.store
    rollout = store.rollouts.enter(app.name, settings.version, settings.lease)
    if rollout is None or rollout.baseline == settings.version:
        return
    known = store.subscribers.channels()
    for flow in app.flows.values():
        before = known.get(flow.name, flow.source.name)
        if before != flow.source.name:
            raise ConfigError(
                f"flow {flow.name} receives from {before} in version {named(rollout.baseline)}, which is beside "
                f"this one, and from {flow.source.name} in version {named(settings.version)}; give it another name"
            )


def _follow(token: int, supervisor: Supervisor, serving: Sequence[socket.socket]) -> None:
    """The group of this instance is active now, or no more."""
    if supervisor.token:
        _refuse(serving)
        supervisor.begin_anew()
        _refuse(serving)  # a worker that was just starting may have opened them again
    if token:
        supervisor.begin(token)
        _serve(serving)


def _refuse(serving: Sequence[socket.socket]) -> None:
    """Who connects is refused, and goes to the active ones."""
    for one in serving:
        with suppress(OSError):  # it does not listen
            one.shutdown(socket.SHUT_RDWR)


def _serve(serving: Sequence[socket.socket]) -> None:
    for one in serving:
        one.listen(BACKLOG)


def _capacity(supervisor: Supervisor, standby: Standby | None, share: float) -> str:
    """What of the requests this instance should get: the answer to HAProxy's agent checks."""
    if standby is not None and not standby.token:
        return "down #spare"
    if supervisor.stopping:
        return "drain"
    if not share:
        return "drain #its version has no share"
    return f"up ready {max(0.01, supervisor.ready * share):.0%}" if supervisor.ready else "down"
