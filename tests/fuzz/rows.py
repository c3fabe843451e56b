"""Raw inputs as rows of flowkit_messages, written by plain SQL without FlowKit."""

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from tests.fuzz.corpus import FLOWS, Raw, damaged
from tests.fuzz.oracle import Told

COLUMNS = ("copy", "flow", "source", "id", "channel", "body", "type", "key", "time", "correlation", "causation",
           "headers", "generation", "attempts", "deliveries", "staged", "due", "worker", "parked")  # fmt: skip
BATCH = 200


def row(raw: Raw) -> list[Any]:
    """An input as columns; those of fields that are missing are NULL."""
    envelope = {
        name: micros(value) if name in ("time", "staged", "due") else value for name, value in raw.envelope.items()
    }
    headers = damaged(json.dumps(raw.headers, default=str, skipkeys=True).encode(), raw.edits)
    copy = envelope.get("row")
    copy = copy.decode() if isinstance(copy, bytes) else copy  # SQLite would take bytes, as a key of another kind
    named = {**envelope, "copy": copy, "flow": FLOWS[raw.channel], "body": raw.body, "headers": headers}
    named |= {"worker": raw.properties.get("app_id"), "parked": raw.properties.get("reply_to")}
    return [named.get(name) for name in COLUMNS]


def micros(value: Any) -> Any:
    """Microseconds of what is a number of seconds that can be a column."""
    ordinary = isinstance(value, int | float) and abs(value) < 2**40
    return int(value * 1_000_000) if ordinary else value


def put(store: Any, raws: Sequence[Raw]) -> list[Told]:
    """Write inputs as rows. The database may refuse them."""
    marker, text = (
        ("%s", "convert_from(%s, 'UTF8')") if store.dialect.name == "postgresql" else ("?", "CAST(? AS TEXT)")
    )
    values = ", ".join(text if name == "headers" else marker for name in COLUMNS)
    statement = f"INSERT INTO flowkit_messages ({', '.join(COLUMNS)}) VALUES ({values})"
    told: list[Told] = []
    with closing(store.dialect.engine.raw_connection()) as pooled, closing(pooled.cursor()) as cursor:
        for start in range(0, len(raws), BATCH):
            cursor.execute("BEGIN IMMEDIATE" if marker == "?" else "BEGIN")
            told += [_insert(cursor, statement, one) for one in raws[start : start + BATCH]]
            cursor.execute("COMMIT")
    return told


def _insert(cursor: Any, statement: str, raw: Raw) -> Told:
    cursor.execute("SAVEPOINT one")
    try:
        cursor.execute(statement, row(raw))
    except Exception as error:  # of the database, or of its driver that cannot write it down
        cursor.execute("ROLLBACK TO one")
        return Told(refused=f"{type(error).__name__}: {error}"[:300])
    cursor.execute("RELEASE one")
    return Told()
