"""The port by which the parts of a worker report on messages. `otel.py` implements it; the base class does nothing."""

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
