"""An instance of an app: the process that supervises its workers, from start to exit."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket
from typing import Any, TypeVar

from flowkit.app import App
from flowkit.engine.versions import named
from flowkit.errors import ConfigError, StoreConflict, Unavailable
from flowkit.host.agent import Agent
from flowkit.host.ending import STEP_SECONDS, Ending
from flowkit.host.idle import Idle
from flowkit.host.init import reap_orphans
from flowkit.host.options import Options
from flowkit.host.scaling import Scaling
from flowkit.host.signals import Signals, name_parent
from flowkit.host.sockets import bind_shared, listen, named_place, refuse, serve
from flowkit.host.standby import join_group
from flowkit.host.supervisor import COMMAND, Supervisor
from flowkit.host.systemd import ServiceManager
from flowkit.operations import keys
from flowkit.operations.subscriptions import orphans
from flowkit.services import Services, connect
from flowkit.settings import Settings, doubts
from flowkit.url import mask

START_SECONDS = 10.0
"""Longest time in seconds for which a starting instance tries to reach its services."""
AGAIN_SECONDS = 0.25
T = TypeVar("T")
_log = logging.getLogger("flowkit.run")


def supervise(app: App, settings: Settings, options: Options) -> int:
    """Run an instance until it ends. Returns its exit status. Blocks. Raises ConfigError and DefinitionError."""
    services = patiently(lambda: connect(settings))
    try:
        patiently(lambda: check(app, services))
        return Instance(app, services, options).run()
    finally:
        services.close()


def patiently(step: Callable[[], T]) -> T:
    """Run a step of an instance's start. Repeat it for START_SECONDS while a service cannot be reached: one cut
    connection does not end the start. Raises the last error. Blocks."""
    end, told = time.monotonic() + START_SECONDS, ""
    while True:
        try:
            return step()
        except (Unavailable, StoreConflict) as error:
            if time.monotonic() > end:
                raise
            if str(error) != told:
                _log.warning("cannot start yet; trying again: %s", error)
            told = str(error)
        time.sleep(AGAIN_SECONDS)


def check(app: App, services: Services) -> None:
    """Find mistakes before any worker starts, so that they are reported once. Logs warnings. Blocks. Raises ConfigError
    and DefinitionError."""
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


def _check_channels(app: App, services: Services) -> None:
    """Raise ConfigError if a flow has another channel in the baseline. A flow has one channel: this version's would
    replace it, and the baseline would lose its messages."""
    settings, store = services.settings, services.store
    rollout = store.rollouts.enter(app.name, settings.version, settings.lease)
    if rollout is None or rollout.baseline == settings.version:
        return
    known = store.subscribers.channels()
    for flow in app.flows.values():
        before = known.get(flow.name, flow.source.name)
        if before != flow.source.name:
            raise ConfigError(
                f"flow {flow.name} receives from {before} in version {named(rollout.baseline)}, which runs beside "
                f"this one, and from {flow.source.name} in version {named(settings.version)}; give it another name"
            )


class Instance:
    """A supervisor with its workers and the sockets that they serve. The group, the fleet's directions and signals
    decide how many workers run, and when they work."""

    def __init__(self, app: App, services: Services, options: Options) -> None:
        """Start everything except the workers. Blocks. Raises ConfigError."""
        settings = services.settings
        chosen = [flow.name for flow in (app.select(options.flows) if options.flows else app.flows.values())]
        self._signals, self._manager = Signals(), ServiceManager()
        name_parent()
        self._shared = bind_shared(options.http, options.admin)
        self._supervisor = Supervisor(
            [*COMMAND, *sys.argv[1:]],
            options.workers,
            services.store,
            services.clock,
            services.random,
            [one.fileno() for one in self._shared],
        )
        self._ending = Ending(self._supervisor, options.grace_seconds, self._signals)
        self._standby = patiently(partial(join_group, app.name, services, options.standby != "none"))
        if self._standby is None:
            serve(self._shared)
        for one, whom in zip(self._shared, ("", " operators at"), strict=False):
            _log.info("app %s: serves%s http://%s", app.name, whom, named_place(one))
        broker = bool(settings.broker_url or settings.drain_url)
        self._idle = Idle(services.store, services.transport, chosen, broker) if options.until_idle else None
        _log.info(
            "app %s: %d flow(s) in %d worker process(es) on %s",
            app.name, len(chosen), options.workers, mask(settings.database_url),
        )  # fmt: skip
        self._scaling = Scaling(services, app, chosen, options.workers, self._supervisor)
        self._agent = Agent(listen(options.agent, "--agent"), self._capacity) if options.agent else None

    def run(self) -> int:
        """Keep the workers alive until a signal, or until the flows are idle; then end them. Returns the exit status.
        Blocks."""
        try:
            while self._supervisor.step() and not self._signals.asked.wait(STEP_SECONDS):
                if self._step():
                    break
            self._manager.stopping()
            for one in self._shared:
                one.close()  # or clients that connect after the workers closed theirs would wait in vain
            return self._ending.wait()
        finally:
            self._close()

    def _step(self) -> bool:
        """Follow the fleet's directions, the group and SIGHUP. Returns whether the flows are idle."""
        reap_orphans(self._supervisor.pids)
        self._scaling.step()
        self._manager.step(self._supervisor.ready == 1)
        if self._standby is not None and self._standby.token != self._supervisor.token:
            follow(self._standby.token, self._supervisor, self._shared)
        if self._idle is not None and self._idle.reached():
            return True
        if self._signals.hangup.is_set():
            self._signals.hangup.clear()
            _log.info("the workers are replaced, one by one")
            self._supervisor.roll()
        return False

    def _close(self) -> None:
        self._supervisor.kill()
        self._supervisor.close()
        if self._agent is not None:
            self._agent.close()
        if self._standby is not None:
            self._standby.close()
        self._signals.ignore()

    def _capacity(self) -> str:
        """The answer to HAProxy's agent checks: the percentage of its requests that this instance should get."""
        if self._standby is not None and not self._standby.token:
            return "down #spare"
        if self._supervisor.stopping:
            return "drain"
        share, ready = self._scaling.share, self._supervisor.ready
        if not share:
            return "drain #its version has no share"
        return f"up ready {max(0.01, ready * share):.0%}" if ready else "down"


def follow(token: int, supervisor: Supervisor, shared: Sequence[socket]) -> None:
    """Start an instance's work when its group becomes active; end it when another group does. `token`: 0 on standby."""
    if supervisor.token:
        refuse(shared)
        supervisor.begin_anew()
        refuse(shared)  # a worker that was starting may have opened them again
    if token:
        supervisor.begin(token)
        serve(shared)
