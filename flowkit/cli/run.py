"""`flowkit run`: run this process as an instance, one of its workers, or a warm spare."""

import os

from flowkit.cli.load import load, refuse_green_threads
from flowkit.cli.logs import log
from flowkit.host.instance import supervise
from flowkit.host.options import Options
from flowkit.host.signals import Signals, die_with_parent
from flowkit.host.supervisor import SLOTS_VARIABLE
from flowkit.host.warm_spare import watch
from flowkit.host.worker_process import work
from flowkit.settings import Settings
from flowkit.telemetry import configure


def run(name: str, options: Options) -> int:
    """Run an app: as a worker if a supervisor started this process, else as a supervisor or warm spare. Returns the
    exit status. Blocks. Raises ConfigError and DefinitionError."""
    surroundings = dict(os.environ)
    descriptor = os.environ.pop(SLOTS_VARIABLE, "")
    if descriptor:
        signals = Signals()
        die_with_parent()
    settings = options.over(Settings.read())
    log(settings)
    options.check(settings)
    if options.standby == "warm" and not descriptor:
        return watch(name, settings, options.grace_seconds, surroundings)
    app = load(name)
    refuse_green_threads(name)
    configure(app.name)
    if descriptor:
        return work(app, settings, options, int(descriptor), signals)
    return supervise(app, settings, options)
