"""Durations: a timedelta, a number of seconds, or text such as "250ms", "30s", "5m", "2h", "1d"."""

import re
from datetime import timedelta

from flowkit.errors import DefinitionError

Duration = timedelta | float | str
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(duration: object, what: str = "a duration") -> float:
    """Return the seconds of a duration. `what` is its name for the error.

    Raises DefinitionError if it is no duration, negative or infinite.
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        value = float(duration)
    elif isinstance(duration, str) and _PART.sub("", duration) == "" and duration:
        value = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(duration))
    else:
        how = "a number with its unit," if isinstance(duration, str) else "a timedelta, seconds, or text"
        raise DefinitionError(f'{what} is {duration!r}; write {how} such as "30s" or "1h30m"')
    if not 0 <= value < float("inf"):
        raise DefinitionError(f"{what} is {duration!r}; it must be zero or more and finite")
    return value


def text(value: float) -> str:
    """Return the shortest text for a number of seconds: "1m30s" for 90.0."""
    if value < 1:
        return f"{value * 1000:.0f}ms" if value else "0s"
    parts, rest = [], value
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count:.0f}{unit}")
    if rest:
        parts.append(f"{rest:.3f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)


def ago(seconds: float | None) -> str:
    """Return a time span in seconds as text for people; "–" for None."""
    if seconds is None:
        return "–"
    return text(round(max(0.0, seconds), 1 if seconds < 10 else 0))
