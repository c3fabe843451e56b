"""Errors without data: the class of an error, and those parts of its text that are constants in the source code.

The text of an exception may repeat a message, a parameter of a statement or a row. More people read logs, traces and
lists of dead letters than messages.
"""

import re
import traceback
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType

from flowkit.errors import FlowKitError, Undecodable

HIDDEN = "…"
LEAST = 3
"""Characters of the shortest constant that is shown: a shorter one may occur in data by chance."""
MOST = 2000
"""Characters of an error's text, at most."""
FIELDS = 5
_TALKATIVE = {"value_error", "assertion_error", "union_tag_invalid", "uuid_parsing"} | {
    "get_attribute_error", "iteration_error", "mapping_type", "bytes_invalid_encoding"
}  # fmt: skip
"""The kinds of pydantic errors whose text repeats the value, or comes from a validator."""
_KNOWN = frozenset(get_args(ErrorType)) - _TALKATIVE
_SCHEMATIC = ("22001", "23", "25", "26", "40", "42501", "42P01", "53", "54", "55", "57", "P0001")
"""SQLSTATEs whose first line names tables, columns and constraints, but no values; and P0001 of RAISE, whose text is
for operators, as that of `Reject`."""
_QUOTING = 1
"""SQLITE_ERROR: its text may quote the statement."""
_MISSING = re.compile(r"no such (?:table|column): [\w.]+|table \w+ has no column named \w+")
"""Texts of SQLITE_ERROR that name the schema only."""


def told(error: BaseException | None) -> str:
    """Return one line for an error: its class, and its text without data. Empty for None."""
    if error is None:
        return ""
    try:
        text = _text(error)
    except Exception:
        text = "(its text cannot be shown)"
    return f"{type(error).__name__}: {text}"[:MOST]


def stack(error: BaseException) -> str:
    """Return the tracebacks of an error and its causes, the first cause first, without data."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and all(following is not one for one in chain):
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return "\nwhich led to:\n\n".join(
        f"Traceback (most recent call last):\n{''.join(traceback.format_tb(one.__traceback__))}{told(one)}\n"
        for one in reversed(chain)
    )


def faults(error: ValidationError, whole: bool) -> str:
    """Return the first invalid fields and their errors; `whole` adds texts of validators, which may repeat values."""
    found = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False)[:FIELDS]:
        where, said = [str(part) for part in fault["loc"]], fault["msg"]
        if not whole:
            where = [place(part) for part in where]
            said = said if fault["type"] in _KNOWN else f"refused ({fault['type']})"
        found.append(f"{'.'.join(where) or 'the body'}: {said}")
    more = error.error_count() - len(found)
    return "; ".join(found) + (f"; and {more} more" if more > 0 else "")


def place(part: object) -> str:
    """Return a part of a path if it is a name or a number, else `HIDDEN`: other keys of a mapping may be data."""
    text = str(part)
    return text if text.isidentifier() or text.isdecimal() else HIDDEN


def _text(error: BaseException) -> str:
    if isinstance(error, FlowKitError):
        return error.told if isinstance(error, Undecodable) else str(error)
    if isinstance(error, ValidationError):
        return faults(error, whole=False)
    driver = getattr(error, "orig", None) or error  # SQLAlchemy wraps what the driver raised
    if hasattr(driver, "sqlite_errorcode") or getattr(driver, "sqlstate", None):
        return _of_database(driver)
    frames = [*traceback.walk_tb(error.__traceback__)]
    if not frames:
        return str(error)  # it was never raised: FlowKit made it
    frame, line = frames[-1]
    if str(frame.f_globals.get("__name__")).startswith("flowkit."):
        return str(error)
    source = frame.f_code
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    shown = repr(_literal(key, source)) if isinstance(key, str) else _literal(str(error), source)
    return f"{shown} ({Path(source.co_filename).name}:{line} in {source.co_name})" if HIDDEN in shown else shown


def _of_database(error: Any) -> str:
    """The driver's text of an error, if it names only the schema. SQLAlchemy and PostgreSQL add parameters and rows."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        quotes = code == _QUOTING and not _MISSING.fullmatch(str(error))
        return error.sqlite_errorname if quotes else str(error)
    kind = f"({type(error).__name__}, {error.sqlstate})"
    return f"{kind} {error.diag.message_primary}" if error.sqlstate.startswith(_SCHEMATIC) else kind


def _literal(text: str, source: CodeType) -> str:
    """A text that shows the constants of a function and hides the rest."""
    if text in source.co_consts:
        return text
    shown, end = [], 0
    for found in _constants(source).finditer(text):
        shown += [HIDDEN] if found.start() > end else []
        shown.append(found[0])
        end = found.end()
    return "".join(shown) + (HIDDEN if end < len(text) else "")


@lru_cache(256)
def _constants(source: CodeType) -> re.Pattern[str]:
    texts = {one for one in source.co_consts if isinstance(one, str)}
    long = sorted((one for one in texts if len(one) >= LEAST), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, long)) or r"(?!)")
