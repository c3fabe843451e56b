"""The surface of the FlowKit that this Python imports.

A line is `SECTION NAME: MEANING`. Sections that end in `-text` hold wording; all other sections hold what programs
depend on. The surface is entered by names that users know, and everything else is found by its name or kind in
whichever module it is, so moving code inside the package changes no line.
"""

import logging
import os
import tempfile
from pathlib import Path

from .commands import of_commands, of_exits, of_json
from .package import Package
from .python import of_errors, of_python
from .running import of_http, of_loggers, of_opentelemetry, of_prometheus, of_settings, running
from .schema import of_postgresql, of_sqlite


def surface() -> list[str]:
    """All lines, in order. Changes the environment and the logging of this process."""
    logging.disable()
    for name in [name for name in os.environ if name.startswith(("FLOWKIT_", "OTEL_"))]:
        del os.environ[name]
    package, lines = Package(), list[str]()
    for part in (of_commands, of_exits, of_settings, of_loggers, of_opentelemetry, of_postgresql):
        lines += part(package)
    lines += [*of_errors(), *of_python()]
    with tempfile.TemporaryDirectory() as folder, running() as harness:
        lines += of_sqlite(Path(folder, "schema.db"))
        lines += of_json(f"sqlite:///{folder}/json.db")
        lines += of_prometheus(package, harness)
        lines += of_http(package, harness)
    return sorted(set(lines))
