"""Codecs of the tables: times in microseconds, envelopes, and lists of names as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from flowkit.message import Message

MICROSECOND = 1_000_000
Row = Sequence[object] | Mapping[str, object]
"""The parameters of a statement: in order, or by name."""


def names(those: Iterable[str]) -> str:
    """Return names as JSON, the form in which statements take lists."""
    return to_json([[name] for name in those]).decode()


def envelope(message: Message) -> tuple[object, ...]:
    """Return the columns of a message, in the order of the tables."""
    return (
        message.source,
        message.id,
        message.channel,
        message.body,
        message.type,
        message.key,
        int(message.time * MICROSECOND),
        message.correlation,
        message.causation,
        to_json(message.headers).decode() if message.headers else None,
    )


def read_message(row: Any) -> Message:
    """Return the message in ten envelope columns. Never raises: an error here would fail the whole batch again and
    again. Invalid values pass unchanged, and fail later, where each message is decoded alone."""
    source, id, channel, body, kind, key, time, correlation, causation, headers = row
    return Message(
        id,
        source,
        channel,
        body if isinstance(body, bytes) else str(body).encode("utf-8", "backslashreplace"),
        kind,
        key,
        seconds(time),
        correlation,
        causation,
        _read_headers(headers),
    )


def seconds(micros: Any) -> Any:
    """Convert microseconds to seconds. An invalid value passes unchanged."""
    return micros / MICROSECOND if isinstance(micros, int | float) else micros


def _read_headers(column: Any) -> Any:
    try:
        return json.loads(column) if column else {}
    except (ValueError, TypeError, RecursionError):
        return column
