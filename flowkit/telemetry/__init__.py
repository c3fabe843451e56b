"""Telemetry: traces and metrics of messages, off unless they are asked for.

OpenTelemetry is spoken to in `otel.py` only, which is imported when somebody asks.
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
    """What a process tells of its messages. This one tells nothing, costs nothing, and changes nothing."""

    on = False

    def sent(self, message: Message) -> Message:
        """A message that is sent now: with the trace that it belongs to in its headers."""
        return message

    def handler(self, call: C) -> C:
        """How to call a flow's handler, so that each run is told."""
        return call

    def consumer(self, consumer: Consumer, flow: str, channel: str) -> Consumer:
        """The consumer of a lane, so that what it receives and settles is told."""
        return consumer

    def ended(self, flow: str, outcomes: Collection[Outcome | None]) -> None:
        """What came of a batch of a flow."""

    def rerun(self, flow: str) -> None:
        """A handler failed, and its batch runs once more. No attempt is counted."""

    def close(self) -> None:
        """Hand over what is not yet told, within a few seconds."""


OFF = Telemetry()


def asked_for() -> bool:
    """Whether the environment asks for telemetry, by OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER."""
    names = [os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() for signal in SIGNALS]
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(name not in ("", "none") for name in names)


def configure(service: str) -> None:
    """Set up the SDK of this process as the standard OTEL_ variables say, if they ask for it and nobody did before.

    `service` is its name unless they give one. Raises ConfigError for an exporter that is not installed.
    """
    if asked_for():
        from flowkit.telemetry import otel

        otel.configure(service)


def ambient(system: str) -> Telemetry:
    """The telemetry of a process whose SDK is set up, by `configure` or by the program itself; else OFF.

    `system` says what carries the messages, as `messaging.system`.
    """
    if "opentelemetry.sdk" not in sys.modules:
        return OFF
    from flowkit.telemetry import otel

    return otel.ambient(system)


def ids() -> dict[str, str]:
    """`trace_id` and `span_id` of what this thread or task does now, if it is traced."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from flowkit.telemetry import otel

    return otel.ids()
