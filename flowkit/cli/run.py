"""`flowkit run`: the supervisor, and the worker process that it starts."""

import logging
import os
import sys
import threading
import time
from typing import NamedTuple

from flowkit import duration
from flowkit.app import App
from flowkit.cli.idle import Idle
from flowkit.cli.load import load
from flowkit.cli.logs import log
from flowkit.cli.signals import Signals, die_with_parent, name_parent
from flowkit.cli.systemd import ServiceManager
from flowkit.config import Services, Settings, connect
from flowkit.engine.slots import Slots
from flowkit.engine.supervisor import REPLACE, SLOTS_VARIABLE, STOPPED, Supervisor
from flowkit.engine.worker import Worker
from flowkit.errors import ConfigError
from flowkit.telemetry import configure
from flowkit.url import mask
from flowkit.web.agent import Agent
from flowkit.web.listen import listen

STEP_SECONDS = 0.05
STOPPED_SECONDS = 0.2
INTERRUPTED = 130
HTTP_VARIABLE = "FLOWKIT_HTTP_SOCKET"
"""The open file of the socket that the supervisor's workers share."""
MARGIN_SECONDS = 2.0
"""Granted to the workers beyond their grace before they are killed."""
_log = logging.getLogger("flowkit.run")


class Options(NamedTuple):
    """How an app is run."""

    workers: int
    flows: list[str]
    until_idle: bool
    grace: str
    http: str
    agent: str
    drain: str


def run(name: str, options: Options) -> int:
    """Run an app: as a worker where a supervisor started this process, else as its supervisor. Returns the exit."""
    descriptor = os.environ.pop(SLOTS_VARIABLE, "")
    if descriptor:
        signals = Signals()
        die_with_parent()
    settings = Settings.read()
    log(settings)
    grace = duration.seconds(options.grace, "--grace")
    if options.http and duration.seconds(options.drain, "--drain") > grace:
        raise ConfigError(f"--drain {options.drain} is longer than --grace {options.grace}; drain is a part of it")
    app = load(name)
    configure(app.name)
    services = connect(settings)
    if descriptor:
        return _work(app, services, options, grace, Slots(int(descriptor)), signals)
    try:
        return _supervise(app, services, options, grace)
    finally:
        services.close()


def _work(app: App, services: Services, options: Options, grace: float, slots: Slots, signals: Signals) -> int:
    """The life of a worker process."""
    worker = Worker(app, services, app.select(options.flows) if options.flows else None, slots)
    front = None
    if options.http:
        from flowkit.web.front import Front

        front = Front(app, services, worker, int(os.environ.pop(HTTP_VARIABLE)))
        drain = duration.seconds(options.drain, "--drain")
        signals.call(lambda: front.leave(drain, grace))
        signals.call_at_hangup(lambda: front.leave(0, grace))  # siblings take what comes
    else:
        signals.call(worker.stop)
        signals.call_at_hangup(worker.stop)
    if options.until_idle:
        threading.Thread(target=_end_when_stopped, args=(worker,), name="flowkit-stopped", daemon=True).start()
    ended = worker.run(grace, _abandon)
    if front is not None:
        front.close(grace)
    if worker.overdue or worker.crippled or not ended:
        _abandon()
    services.telemetry.close()
    services.close()
    signals.ignore()
    return STOPPED if any(lane.stopped for lane in worker.lanes) else 0


def _end_when_stopped(worker: Worker) -> None:
    """End a worker of which a flow stopped: what that flow holds would stay pending, and never be idle."""
    while not worker.stopping.wait(STOPPED_SECONDS):
        if any(lane.stopped for lane in worker.lanes):
            worker.stop()


def _abandon() -> None:
    """End this process though a handler hangs in a thread that cannot be ended; the supervisor charges its message."""
    logging.shutdown()
    os._exit(REPLACE)


def _supervise(app: App, services: Services, options: Options, grace: float) -> int:
    """The life of the supervisor. Mistakes are found here, so that they are told once."""
    store = services.store
    subscribed: dict[str, list[str]] = {}
    for flow, channel in store.subscriptions().items():
        subscribed.setdefault(channel, []).append(flow)
    app.check(store.injects, subscribed)
    chosen = [flow.name for flow in (app.select(options.flows) if options.flows else app.flows.values())]
    app.connect(services)
    signals, manager = Signals(), ServiceManager()
    name_parent()
    listening = []
    if options.http:
        listening.append(listen(options.http, "--http"))
        os.environ[HTTP_VARIABLE] = str(listening[0].fileno())
    supervisor = Supervisor(
        [sys.executable, "-m", "flowkit", *sys.argv[1:]],
        options.workers,
        store,
        services.clock,
        services.random,
        [one.fileno() for one in listening],
    )
    broker = bool(services.settings.broker_url or services.settings.drain_url)
    idle = Idle(store, services.transport, chosen, broker) if options.until_idle else None
    _log.info(
        "app %s: %d flow(s) in %d worker process(es) on %s",
        app.name, len(chosen), options.workers, mask(services.settings.database_url),
    )  # fmt: skip
    agent = Agent(listen(options.agent, "--agent"), lambda: _capacity(supervisor)) if options.agent else None
    try:
        while supervisor.step() and not signals.asked.wait(STEP_SECONDS):
            manager.step(supervisor.ready == 1)
            if idle is not None and idle.reached():
                break
            if signals.hangup.is_set():
                signals.hangup.clear()
                _log.info("the workers are replaced, one by one")
                supervisor.roll()
        manager.stopping()
        for one in listening:
            one.close()  # or who connects once the workers have closed theirs would wait for nobody
        return _finish(supervisor, grace, signals)
    finally:
        supervisor.kill()
        supervisor.close()
        if agent is not None:
            agent.close()
        signals.ignore()


def _capacity(supervisor: Supervisor) -> str:
    """What of this instance's share of the requests it can take: the answer to HAProxy's agent checks."""
    if supervisor.stopping:
        return "drain"
    return f"up ready {supervisor.ready:.0%}" if supervisor.ready else "down"


def _finish(supervisor: Supervisor, grace: float, signals: Signals) -> int:
    """Let the workers end, at most for their grace or until a second signal. Returns the exit code."""
    supervisor.stop()
    end = time.monotonic() + grace + MARGIN_SECONDS
    killed = False
    while supervisor.step():
        if not killed and (signals.again.is_set() or time.monotonic() > end):
            why = "at the second signal" if signals.again.is_set() else f"because they did not finish within {grace:g}s"
            _log.error("workers %s are killed %s; their messages are taken over", supervisor.pids, why)
            supervisor.kill()
            killed = True
        time.sleep(STEP_SECONDS)
    if signals.again.is_set():
        return INTERRUPTED
    return max(supervisor.status, int(killed))
