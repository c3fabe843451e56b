"""`flowkit run`: the supervisor, and the worker process that it starts."""

import logging
import os
import sys
import threading
import time

from flowkit import duration
from flowkit.app import App
from flowkit.cli.idle import Idle
from flowkit.cli.load import load
from flowkit.cli.logs import log
from flowkit.cli.signals import Signals, die_with_parent, name_parent
from flowkit.config import Services, Settings, connect
from flowkit.engine.slots import Slots
from flowkit.engine.supervisor import REPLACE, SLOTS_VARIABLE, STOPPED, Supervisor
from flowkit.engine.worker import Worker
from flowkit.telemetry import configure
from flowkit.url import mask

STEP_SECONDS = 0.05
STOPPED_SECONDS = 0.2
INTERRUPTED = 130
MARGIN_SECONDS = 2.0
"""Granted to the workers beyond their grace before they are killed."""
_log = logging.getLogger("flowkit.run")


def run(name: str, workers: int, flows: list[str], until_idle: bool, grace: str) -> int:
    """Run an app: as a worker where a supervisor started this process, else as its supervisor. Returns the exit."""
    descriptor = os.environ.pop(SLOTS_VARIABLE, "")
    if descriptor:
        signals = Signals()
        die_with_parent()
    settings = Settings.read()
    log(settings)
    seconds = duration.seconds(grace, "--grace")
    app = load(name)
    configure(app.name)
    services = connect(settings)
    if descriptor:
        return _work(app, services, flows, until_idle, seconds, Slots(int(descriptor)), signals)
    try:
        return _supervise(app, services, workers, flows, until_idle, seconds)
    finally:
        services.close()


def _work(
    app: App, services: Services, flows: list[str], until_idle: bool, grace: float, slots: Slots, signals: Signals
) -> int:
    """The life of a worker process."""
    worker = Worker(app, services, app.select(flows) if flows else None, slots)
    signals.call(worker.stop)
    if until_idle:
        threading.Thread(target=_end_when_stopped, args=(worker,), name="flowkit-stopped", daemon=True).start()
    ended = worker.run(grace, _abandon)
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


def _supervise(app: App, services: Services, workers: int, flows: list[str], until_idle: bool, grace: float) -> int:
    """The life of the supervisor. Mistakes are found here, so that they are told once."""
    store = services.store
    subscribed: dict[str, list[str]] = {}
    for flow, channel in store.subscriptions().items():
        subscribed.setdefault(channel, []).append(flow)
    app.check(store.injects, subscribed)
    chosen = [flow.name for flow in (app.select(flows) if flows else app.flows.values())]
    app.connect(services)
    signals = Signals()
    name_parent()
    supervisor = Supervisor(
        [sys.executable, "-m", "flowkit", *sys.argv[1:]], workers, store, services.clock, services.random
    )
    broker = bool(services.settings.broker_url or services.settings.drain_url)
    idle = Idle(store, services.transport, chosen, broker) if until_idle else None
    _log.info(
        "app %s: %d flow(s) in %d worker process(es) on %s",
        app.name, len(chosen), workers, mask(services.settings.database_url),
    )  # fmt: skip
    try:
        while supervisor.step() and not signals.asked.wait(STEP_SECONDS):
            if idle is not None and idle.reached():
                break
        return _finish(supervisor, grace, signals)
    finally:
        supervisor.kill()
        supervisor.close()
        signals.ignore()


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
