"""FlowKit: stateless reliable messaging. Flows that take effect once, whatever crashes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowkit.app import App
    from flowkit.errors import (
        ConfigError,
        DefinitionError,
        FlowKitError,
        OutcomeUnknown,
        Reject,
        RetryAfter,
        Reused,
        StoreUnavailable,
        TooLarge,
        Unrouted,
    )
    from flowkit.message import Message
    from flowkit.model.channel import Channel, Routed, Split
    from flowkit.model.handler import Logger
    from flowkit.model.outbox import Outbox
    from flowkit.model.retry import RetryPolicy
    from flowkit.ports import Objects, UnitOfWork
    from flowkit.store.library import sqlite_driver

__all__ = [
    "App",
    "Channel",
    "ConfigError",
    "DefinitionError",
    "FlowKitError",
    "Logger",
    "Message",
    "Objects",
    "Outbox",
    "OutcomeUnknown",
    "Reject",
    "RetryAfter",
    "RetryPolicy",
    "Reused",
    "Routed",
    "Split",
    "StoreUnavailable",
    "TooLarge",
    "UnitOfWork",
    "Unrouted",
    "sqlite_driver",
]
__version__ = "0.1.0"

_HOMES = {
    "App": "app",
    "Channel": "model.channel",
    "Logger": "model.handler",
    "Message": "message",
    "Objects": "ports",
    "Outbox": "model.outbox",
    "RetryPolicy": "model.retry",
    "Routed": "model.channel",
    "Split": "model.channel",
    "UnitOfWork": "ports",
    "sqlite_driver": "store.library",
}
"""Where names live that are not errors. Imported on first use: `flowkit --help` needs none of them."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"flowkit.{_HOMES.get(name, 'errors')}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
