"""Documents: JSON texts, and what decoders do not take of them, or do not keep."""

import json
from decimal import Decimal
from typing import Any

from pydantic_core import from_json

DEEPEST = 200
"""How far objects and arrays may be nested for decoders."""
LONGEST = 4300
"""Digits of the longest integer that decoders take."""
_DIGITS = frozenset(b"0123456789")
_SHAPE = bytes.maketrans(b"123456789.+", b"0000000000-")
"""All digits become 0, so that a kind of number is found as quickly as a text."""
_MANY, _SMALL = b"0" * 16, (b"e-000", b"E-000")
"""A float keeps 15 digits of every number, and exponents down to -307."""
_OFFSET = b'-00:00"'


def check_finite(document: bytes) -> None:
    """Raise ValueError where a JSON document has NaN or an infinity: many encoders write them, and JSON has neither."""
    if b"NaN" in document or b"Infinity" in document:
        from_json(document, allow_inf_nan=False)


def check_readable(document: bytes) -> None:
    """Raise ValueError where decoders do not take a JSON document: encoders nest deeper, and write longer integers."""
    if may_be_too_long(document) or document.count(b"[") + document.count(b"{") > DEEPEST:
        from_json(document)


def may_be_too_long(document: bytes) -> bool:
    """Whether there may be an integer that decoders do not take. Costs a look at one byte of 4,300."""
    return len(document) > LONGEST and not _DIGITS.isdisjoint(document[LONGEST - 1 :: LONGEST])


def may_have_offset(document: bytes) -> bool:
    """Whether there may be a time that is not in UTC: JSON has no seconds of its offset."""
    return _OFFSET in document.translate(_SHAPE)


def exact(document: bytes) -> Any:
    """The value of a valid JSON document in which numbers that a float would round are Decimals; None without such."""
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
