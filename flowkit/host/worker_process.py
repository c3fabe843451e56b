"""A worker process, from its start by a supervisor to its end."""

import os
import threading
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from flowkit.app import App
from flowkit.config import Services, Settings, connect, open_store
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

if TYPE_CHECKING:
    from flowkit.web.front import Front

WAIT_SECONDS = 0.02
"""Between two looks whether the group of a worker is active."""
STOPPED_SECONDS = 0.2
"""Between two looks whether a flow stopped."""
LATE_SECONDS = 1.0
"""Granted to a worker beyond its grace before it ends itself."""


def work(app: App, settings: Settings, options: Options, descriptor: int, signals: Signals) -> int:
    """The life of a worker process, whose slots are in the open file `descriptor`. Returns its exit status, or ends it.
    Blocks."""
    services = join(settings)
    slots = Slots(descriptor)
    os.close(descriptor)  # it is mapped, and no program that a handler starts is to have it
    if settings.group and not wait_until_active(app, services, slots, signals):
        services.close()
        return 0
    worker = _worker(app, services, options, slots)
    front = _front(app, services, worker) if options.http else None
    _obey(signals, worker, front, options)
    _watch(worker, options)
    # The supervisor charges the message of a handler that hangs in a thread, which cannot be ended.
    abandon = partial(end, REPLACE)
    ended = worker.run(options.grace_seconds, abandon)
    if front is not None:
        front.close(options.grace_seconds)
    if worker.lost:
        slots.clear()  # nobody is to blame
        end(LOST)
    if worker.overdue or worker.crippled or not ended:
        abandon()
    services.telemetry.close()
    services.close()
    signals.ignore()
    return STOPPED if any(lane.stopped for lane in worker.lanes) else 0


def join(settings: Settings) -> Services:
    """The services of a worker. A file is made by its supervisor only, which may be of a version before this one."""
    with suppress(StoreOutdated):
        return connect(settings, create=False)
    with closing(open_store(settings, check=False, create=False)) as store:
        store.schema.upgrade()
    return connect(settings, create=False)


def wait_until_active(app: App, services: Services, slots: Slots, signals: Signals) -> bool:
    """Wait, with everything loaded, until the group of this worker is active. False when it is asked to end instead."""
    services.store.subscribers.channels()  # the connection is there
    slots.ready = True
    while not slots.token:
        if signals.asked.wait(WAIT_SECONDS) or signals.hangup.is_set():
            return False
    slots.ready = False
    services.store.fence = Fence(app.name, services.settings.group, slots.token)
    return True


def _worker(app: App, services: Services, options: Options, slots: Slots) -> Worker:
    """The worker, which has joined the fleet. Raises ConfigError."""
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
    return worker


def _front(app: App, services: Services, worker: Worker) -> "Front":
    from flowkit.web.front import Front

    return Front(app, services, worker, *inherited())


def _obey(signals: Signals, worker: Worker, front: "Front | None", options: Options) -> None:
    """Have a signal stop the worker: at once, or by its front, which first answers what came."""
    if front is None:
        signals.call(worker.stop)
        signals.call_at_hangup(worker.stop)
        return
    drain, grace = options.drain_seconds, options.grace_seconds
    signals.call(lambda: front.leave(drain, grace))
    signals.call_at_hangup(lambda: front.leave(0, grace))  # siblings take what comes


def _watch(worker: Worker, options: Options) -> None:
    """See to it, on threads of their own, that the worker ends when it should."""
    if options.until_idle:
        threading.Thread(target=_end_when_stopped, args=(worker,), name="flowkit-stopped", daemon=True).start()
    grace = options.grace_seconds
    threading.Thread(target=_keep_grace, args=(worker, grace), name="flowkit-stopping", daemon=True).start()


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
