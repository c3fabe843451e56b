"""Telemetry: traces and metrics of messages, off unless the environment or the program turns them on.

Only `otel.py` uses OpenTelemetry. It is imported only when telemetry is on.
"""

import os
import sys
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from flowkit.message import Message
from flowkit.ports import Consumer, Outcome

C = TypeVar("C", bound=Callable[..., Any])
SIGNALS = ("traces", "metrics")


class Telemetry:
    """Reports on the messages of a process. This base class reports nothing and changes nothing."""

    on = False

    def sent(self, message: Message) -> Message:
        """Report a message that is sent now. Returns the message with its trace in the headers."""
        return message

    def handler(self, call: C) -> C:
        """Return a flow's handler, wrapped so that each run is reported."""
        return call

    def consumer(self, consumer: Consumer, flow: str, channel: str) -> Consumer:
        """Return the consumer of a lane, wrapped so that its receiving and settling are reported."""
        return consumer

    def ended(self, flow: str, outcomes: Collection[Outcome | None]) -> None:
        """Report the outcomes of a batch of a flow."""

    def rerun(self, flow: str) -> None:
        """Report that a handler failed and its batch runs again. That counts no attempt."""

    def close(self) -> None:
        """Send what is not reported yet. Blocks for a few seconds at most."""


OFF = Telemetry()


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
