"""A worker process, from its start by a supervisor to its exit."""

import os
import threading
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from flowkit.app import App
from flowkit.engine.in_flight import Slots
from flowkit.engine.worker import Worker
from flowkit.errors import ConfigError, StoreOutdated
from flowkit.host.ending import end, end_after
from flowkit.host.options import Options
from flowkit.host.signals import Signals
from flowkit.host.sockets import inherited
from flowkit.host.standby import stand_alone
from flowkit.host.supervisor import LOST, REPLACE, STOPPED
from flowkit.operations import keys
from flowkit.ports import Fence
from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings

if TYPE_CHECKING:
    from flowkit.web.http_server import HttpServer

WAIT_SECONDS = 0.02
"""Seconds between two looks whether the worker's group is active."""
STOPPED_SECONDS = 0.2
"""Seconds between two looks whether a flow stopped."""
LATE_SECONDS = 1.0
"""Seconds beyond its grace after which a worker ends itself."""


def work(app: App, settings: Settings, options: Options, descriptor: int, signals: Signals) -> int:
    """Run a worker process until it finishes. `descriptor`: the file with its slots. Returns the exit status, or ends
    the process. Blocks. Raises ConfigError."""
    services = join(settings)
    slots = Slots(descriptor)
    os.close(descriptor)  # the file is mapped, and programs that a handler starts must not inherit it
    if settings.group and not wait_until_active(app, services, slots, signals):
        services.close()
        return 0
    worker = _worker(app, services, options, slots)
    server = _http_server(app, services, worker) if options.http else None
    _obey(signals, worker, server, options)
    _watch(worker, options)
    # A handler's thread that hangs cannot be ended: the process ends, and the supervisor counts the attempt.
    abandon = partial(end, REPLACE)
    ended = worker.run(options.grace_seconds, abandon)
    if server is not None:
        server.close(options.grace_seconds)
    if worker.lost:
        slots.clear()  # no message caused this
        end(LOST)
    if worker.overdue or worker.crippled or not ended:
        abandon()
    services.telemetry.close()
    services.close()
    signals.ignore()
    return STOPPED if any(lane.stopped for lane in worker.lanes) else 0


def join(settings: Settings) -> Services:
    """Connect a worker to its services. Only its supervisor creates an SQLite file. That supervisor may be of an older
    version of FlowKit, so upgrade an outdated store. Blocks."""
    with suppress(StoreOutdated):
        return connect(settings, create=False)
    with closing(open_store(settings, check=False, create=False)) as store:
        store.schema.upgrade()
    return connect(settings, create=False)


def wait_until_active(app: App, services: Services, slots: Slots, signals: Signals) -> bool:
    """Wait, with everything loaded, until the worker's group is active. Returns False if a signal ends the wait."""
    services.store.subscribers.channels()  # opens the connection
    slots.ready = True
    while not slots.token:
        if signals.asked.wait(WAIT_SECONDS) or signals.hangup.is_set():
            return False
    slots.ready = False
    services.store.fence = Fence(app.name, services.settings.group, slots.token)
    return True


def _worker(app: App, services: Services, options: Options, slots: Slots) -> Worker:
    """Create the worker, which joins the fleet. Blocks. Raises ConfigError."""
    store: Any = services.store
    store.schema.check_tables(app.name, app.metadata)  # its supervisor may have checked another version
    keys.note(app, services)
    worker = Worker(app, services, app.select(options.flows) if options.flows else None, slots)
    if not services.settings.group:
        try:
            # From now on no group becomes active: first because of this lease, then because of this worker.
            stand_alone(services.store, app.name, services.settings.group_lease)
        except ConfigError:
            worker.close()
            raise
    return worker


def _http_server(app: App, services: Services, worker: Worker) -> "HttpServer":
    from flowkit.web.http_server import HttpServer

    return HttpServer(app, services, worker, *inherited())


def _obey(signals: Signals, worker: Worker, server: "HttpServer | None", options: Options) -> None:
    """Stop the worker at a signal: at once, or through its HTTP server, which first answers the requests it has."""
    if server is None:
        signals.call(worker.stop)
        signals.call_at_hangup(worker.stop)
        return
    drain, grace = options.drain_seconds, options.grace_seconds
    signals.call(lambda: server.leave(drain, grace))
    signals.call_at_hangup(lambda: server.leave(0, grace))  # the other workers accept new requests


def _watch(worker: Worker, options: Options) -> None:
    """Start the threads that end the worker when a flow stops, or when its grace is over."""
    if options.until_idle:
        threading.Thread(target=_end_when_stopped, args=(worker,), name="flowkit-stopped", daemon=True).start()
    grace = options.grace_seconds
    threading.Thread(target=_keep_grace, args=(worker, grace), name="flowkit-stopping", daemon=True).start()


def _keep_grace(worker: Worker, grace: float) -> None:
    """End a stopping worker after its grace, even if the database or a handler's thread hangs."""
    worker.stopping.wait()
    status = LOST if worker.lost else REPLACE
    end_after(
        grace + LATE_SECONDS, status, f"this worker is ended, because it did not finish within {grace:g}s: does the "
        "database hang, or a thread that a handler started? Its messages are taken over"
    )  # fmt: skip


def _end_when_stopped(worker: Worker) -> None:
    """Stop the worker when one of its flows has stopped: its messages stay pending, so the worker is never idle."""
    while not worker.stopping.wait(STOPPED_SECONDS):
        if any(lane.stopped for lane in worker.lanes):
            worker.stop()
