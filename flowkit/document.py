"""JSON documents: checks for what decoders refuse, and for values that they change."""

import json
from decimal import Decimal
from typing import Any

from pydantic_core import from_json

DEEPEST = 200
"""Levels of nested objects and arrays that decoders accept."""
LONGEST = 4300
"""Digits of the longest integer that decoders accept."""
_DIGITS = frozenset(b"0123456789")
_SHAPE = bytes.maketrans(b"123456789.+", b"0000000000-")
"""Maps all digits to 0, so that a plain text search finds a kind of number."""
_MANY, _SMALL = b"0" * 16, (b"e-000", b"E-000")
"""The patterns of numbers that a float may round: it keeps 15 digits, and exponents down to -307."""
_OFFSET = b'-00:00"'


def check_finite(document: bytes) -> None:
    """Raise ValueError if a document has NaN or an infinity: many encoders write them, but JSON has neither."""
    if b"NaN" in document or b"Infinity" in document:
        from_json(document, allow_inf_nan=False)


def check_readable(document: bytes) -> None:
    """Raise ValueError if decoders refuse a document: encoders nest deeper, and write longer integers."""
    if may_be_too_long(document) or document.count(b"[") + document.count(b"{") > DEEPEST:
        from_json(document)


def may_be_too_long(document: bytes) -> bool:
    """Whether a document may hold an integer too long for decoders. Reads one byte in 4,300."""
    return len(document) > LONGEST and not _DIGITS.isdisjoint(document[LONGEST - 1 :: LONGEST])


def may_have_offset(document: bytes) -> bool:
    """Whether a document may hold a time with a UTC offset: JSON loses the seconds of the offset."""
    return _OFFSET in document.translate(_SHAPE)


def exact(document: bytes) -> Any:
    """Decode a valid document with a Decimal for each number that a float would round; None if there is none."""
    shape = document.translate(_SHAPE)
    if _MANY not in shape and not any(one in shape for one in _SMALL):
        return None
    rounded = False

    def number(text: str) -> float | Decimal:
        nonlocal rounded
        near, told = float(text), Decimal(text)
        if Decimal(repr(near)) == told:
            return near
        rounded = True
        return told

    value = json.loads(document, parse_float=number)
    return value if rounded else None
