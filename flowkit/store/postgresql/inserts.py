"""Plain INSERTs of handlers, which FlowKit sends to PostgreSQL together.

A statement costs a round trip, and each row of an `executemany` a message each way. An INSERT of nothing but
parameters, without RETURNING or ON CONFLICT, has no result that a handler may ask for: in SQLAlchemy, rowcount is for
UPDATE and DELETE. So one statement can insert all rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

_NAME = re.compile(r"%\((\w+)\)s")
_VALUE = r"%\(\w+\)s(?:::[\w ]+(?:\([\d, ]+\))?(?:\[\])*)?"
"""A parameter as SQLAlchemy writes it, with an optional cast."""
_PLAIN = re.compile(
    rf'(\s*INSERT\s+INTO\s+[\w."]+\s*\([\w",\s]+\)\s*VALUES\s*)(\(\s*{_VALUE}(?:\s*,\s*{_VALUE})*\s*\))\s*',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PlainInsert:
    """An INSERT whose values are all parameters."""

    head: str
    values: str
    names: tuple[str, ...]

    def of(self, rows: Sequence[Any]) -> tuple[str, list[object]]:
        """Return one statement for all these rows, with numbered parameters, and their values."""
        return _text(self, len(rows)), [row[name] for row in rows for name in self.names]


@lru_cache
def plain_insert(statement: str) -> PlainInsert | None:
    """Parse a statement; None if it is no plain INSERT."""
    found = _PLAIN.fullmatch(statement)
    return PlainInsert(found[1], found[2], tuple(_NAME.findall(found[2]))) if found else None


@lru_cache
def _text(insert: PlainInsert, rows: int) -> str:
    numbers = count(1)
    return insert.head + ", ".join(_NAME.sub(lambda _: f"${next(numbers)}", insert.values) for _ in range(rows))
