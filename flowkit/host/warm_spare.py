"""A warm spare: a small process without the app, which becomes an instance when no group is active."""

import json
import logging
import os
import subprocess
import sys

from flowkit.host.ending import STEP_SECONDS, end_after
from flowkit.host.init import reap_orphans
from flowkit.host.signals import Signals
from flowkit.host.standby import Standby, spare_worker
from flowkit.host.supervisor import COMMAND
from flowkit.host.systemd import ServiceManager
from flowkit.message import new_id
from flowkit.services import SystemClock, open_store
from flowkit.settings import Settings

_log = logging.getLogger("flowkit.run")


def watch(name: str, settings: Settings, grace: float, surroundings: dict[str, str]) -> int:
    """Wait on standby until the active group's lease has expired; then start as an instance in this process, with the
    environment `surroundings`. A separate process checks first that the app `name` can be loaded. Returns an exit
    status only if it cannot, or if a signal ends the wait. Blocks."""
    described = subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, "describe", name, "--json"], stdout=subprocess.PIPE, check=False
    )
    if described.returncode:
        return described.returncode
    app = json.loads(described.stdout)["app"]
    signals, manager, store = Signals(), ServiceManager(), open_store(settings)
    signals.call(lambda: end_after(grace, 0, f"this spare is ended, because it did not finish within {grace:g}s"))
    info = spare_worker(new_id(), app, settings)
    standby = Standby(store, SystemClock(), info, settings.group_lease, spare=True, takes=False)
    try:
        while not standby.over:
            if signals.asked.wait(STEP_SECONDS):
                return 0
            manager.step(True)
            reap_orphans(())
    finally:
        standby.close()
        store.close()
    _log.warning("app %s: no group is active; this instance starts", app)
    logging.shutdown()
    surroundings = {**surroundings, "FLOWKIT_GROUP": settings.group}
    os.execve(sys.executable, [*COMMAND, *sys.argv[1:], "--standby", "none"], surroundings)  # noqa: S606 - our own
