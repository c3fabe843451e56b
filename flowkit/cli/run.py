"""`flowkit run`: the supervisor, and the worker process that it starts."""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType

from flowkit import duration
from flowkit.app import App
from flowkit.cli.load import load
from flowkit.config import Services, Settings, connect
from flowkit.engine.slots import Slots
from flowkit.engine.supervisor import REPLACE, SLOTS_VARIABLE, Supervisor
from flowkit.engine.worker import Worker

STEP_SECONDS = 0.05
IDLE_SECONDS = 0.2
MARGIN_SECONDS = 2.0
"""Granted to the workers beyond their grace before they are killed."""
PR_SET_PDEATHSIG = 1
_log = logging.getLogger("flowkit.run")


def run(name: str, workers: int, flows: list[str], until_idle: bool, grace: str) -> int:
    """Run an app. Returns the exit code."""
    descriptor = os.environ.pop(SLOTS_VARIABLE, "")
    if descriptor:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # until the worker holds something
    settings = Settings.read()
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    seconds = duration.seconds(grace, "--grace")
    app = load(name)
    if descriptor:
        return _work(app, connect(settings), flows, seconds, int(descriptor))
    services = connect(settings)
    try:
        return _supervise(app, services, workers, flows, until_idle, seconds)
    finally:
        services.close()


def _work(app: App, services: Services, flows: list[str], grace: float, descriptor: int) -> int:
    """The life of a worker process."""
    worker = Worker(app, services, app.select(flows) if flows else None, Slots(descriptor))

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    _die_with_parent()
    ended = worker.run(grace, _abandon)
    if worker.overdue or not ended:
        _abandon()
    services.close()
    return 1 if any(lane.stopped for lane in worker.lanes) else 0


def _abandon() -> None:
    """End this process though a handler hangs in a thread that cannot be ended; the supervisor charges its message."""
    logging.shutdown()
    os._exit(REPLACE)


def _supervise(app: App, services: Services, workers: int, flows: list[str], until_idle: bool, grace: float) -> int:
    """The life of the supervisor."""
    store = services.store
    subscribed: dict[str, list[str]] = {}
    for flow, channel in store.subscriptions().items():
        subscribed.setdefault(channel, []).append(flow)
    app.check(store.injects, subscribed)
    chosen = [flow.name for flow in (app.select(flows) if flows else app.flows.values())]
    app.connect(services)
    supervisor = Supervisor(
        [sys.executable, "-m", "flowkit", *sys.argv[1:]], workers, store, services.clock, services.random
    )
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            supervisor.kill()
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    idle = Idle(services, chosen) if until_idle else None
    try:
        while supervisor.step() and not stopping.wait(STEP_SECONDS):
            if idle is not None and idle.reached():
                break
        supervisor.stop()
        end = time.monotonic() + grace + MARGIN_SECONDS
        while supervisor.step():
            if time.monotonic() > end:
                _log.error("workers %s did not finish within %gs; they are killed", supervisor.pids, grace)
                supervisor.kill()
            time.sleep(STEP_SECONDS)
    finally:
        supervisor.kill()
        supervisor.close()
    return supervisor.status


class Idle:
    """Whether nothing of some flows is pending: seen twice in a row, because a look is not a lock."""

    def __init__(self, services: Services, flows: list[str]) -> None:
        self._services = services
        self._flows = flows
        self._looked = 0.0
        self._seen = 0
        self._told = False

    def reached(self) -> bool:
        """Look, if it is time to."""
        now = time.monotonic()
        if now - self._looked < IDLE_SECONDS:
            return False
        self._looked = now
        self._seen = self._seen + 1 if self._pending() == 0 else 0
        return self._seen >= 2

    def _pending(self) -> int:
        pending = self._services.store.pending(self._flows)
        if pending.later and not pending.now and not self._told:
            self._told = True
            _log.info("only delayed messages and retries are left: waiting for %d", pending.later)
        return sum(pending)


def _die_with_parent() -> None:
    """Finish when the supervisor dies: by a signal from the kernel on Linux, by looking elsewhere."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent != 1:
            return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
