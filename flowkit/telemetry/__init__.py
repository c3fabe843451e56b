"""Telemetry: traces and metrics of messages, off unless the environment or the program turns them on.

Only `otel.py` uses OpenTelemetry. It is imported only when telemetry is on.
"""

import os
import sys

from flowkit.telemetry.port import OFF, SIGNALS, Telemetry


def asked_for() -> bool:
    """Whether OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER turns telemetry on."""
    names = [os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() for signal in SIGNALS]
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(name not in ("", "none") for name in names)


def configure(service: str) -> None:
    """Set up the OpenTelemetry SDK of this process by the standard OTEL_ variables, if they ask for it and the program
    has not done so.

    `service` is the service's name unless the variables set one. Raises ConfigError if an exporter is not installed.
    """
    if asked_for():
        from flowkit.telemetry import otel

        otel.configure(service)


def ambient(system: str) -> Telemetry:
    """Return the telemetry of a process whose SDK is set up, by `configure` or by the program itself; else OFF.

    `system` is the value of `messaging.system`: what carries the messages.
    """
    if "opentelemetry.sdk" not in sys.modules:
        return OFF
    from flowkit.telemetry import otel

    return otel.ambient(system)


def ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the current span of this thread or task; empty without one."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from flowkit.telemetry import otel

    return otel.ids()
