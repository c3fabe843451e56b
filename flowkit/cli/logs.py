"""Logs on standard error: lines of text, or a JSON object each."""

import json
import logging
import sys
from datetime import UTC, datetime

from flowkit.cli.plain import PlainFormatter
from flowkit.config import Settings
from flowkit.errors import ConfigError
from flowkit.telemetry import ids

FIELDS = ("flow", "message_id", "correlation_id")
"""What the loggers of handlers say of their message."""


class JsonFormatter(logging.Formatter):
    """One object a line, with the trace in which it was written."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in FIELDS if hasattr(record, name)},
            **ids(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=True, default=str)


def log(settings: Settings) -> None:
    """Write the logs of this process as the settings say. Raises ConfigError."""
    known = logging.getLevelNamesMapping()
    if settings.log_level.upper() not in known:
        raise ConfigError(f"FLOWKIT_LOG_LEVEL is {settings.log_level!r}; write DEBUG, INFO, WARNING or ERROR")
    plain = PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else plain)
    logging.basicConfig(level=known[settings.log_level.upper()], handlers=[handler])
