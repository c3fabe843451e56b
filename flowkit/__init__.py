"""FlowKit: stateless reliable messaging. Flows that take effect once, whatever crashes."""

from flowkit.app import App
from flowkit.channel import Channel, Routed, Split
from flowkit.errors import (
    ConfigError,
    DefinitionError,
    FlowKitError,
    OutcomeUnknown,
    Reject,
    RetryAfter,
    StoreUnavailable,
    TooLarge,
    Unrouted,
)
from flowkit.flow import Logger, Outbox, RetryPolicy
from flowkit.message import Message

__all__ = [
    "App",
    "Channel",
    "ConfigError",
    "DefinitionError",
    "FlowKitError",
    "Logger",
    "Message",
    "Outbox",
    "OutcomeUnknown",
    "Reject",
    "RetryAfter",
    "RetryPolicy",
    "Routed",
    "Split",
    "StoreUnavailable",
    "TooLarge",
    "Unrouted",
]
__version__ = "0.1.0"
