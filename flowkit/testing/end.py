"""The end of a run: everything that is there when nothing is pending any more, and what differs between two ends."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json
from sqlalchemy import MetaData, Table, inspect, select

from flowkit.testing.harness import Harness

SENT = """
CREATE TABLE flowkit_sent AS SELECT channel, flow, key, type, body FROM flowkit_messages WHERE 0;
CREATE TRIGGER flowkit_sent AFTER INSERT ON flowkit_messages WHEN NEW.generation = 0 BEGIN
    INSERT INTO flowkit_sent VALUES (NEW.channel, NEW.flow, NEW.key, NEW.type, NEW.body);
END;
"""
"""What is sent is taken down by the database, in the transaction that sends it: no crash can come between."""
SHOWN = 3
"""So many rows of a difference are shown."""

Row = Mapping[str, Any]
End = dict[str, list[Row]]
"""Place -> its rows: each table, and what was sent, kept, written to files and observed."""
Columns = set[tuple[str, str]]
"""Place and column."""


class Difference(NamedTuple):
    """What is different in one place: rows that are missing, and rows that should not be there."""

    where: str
    missing: list[Row]
    surplus: list[Row]

    def __str__(self) -> str:
        parts = [
            f"{what} {'; '.join(map(_shown, rows[:SHOWN]))}{' …' if len(rows) > SHOWN else ''}"
            for what, rows in (("missing", self.missing), ("surplus", self.surplus))
            if rows
        ]
        return f"{self.where}: {', '.join(parts)}"


def take_down(harness: Harness) -> None:
    """From now on, keep what is sent. SQLite only."""
    with harness.store.dialect.engine.connect() as connection:
        connection.connection.driver_connection.executescript(SENT)


def read(harness: Harness) -> tuple[End, Columns]:
    """Everything that the database has, and the columns that hold numbers given by it: primary keys and references."""
    engine = harness.store.dialect.engine
    metadata = MetaData()
    names = [name for name in inspect(engine).get_table_names() if not name.startswith("flowkit_")]
    metadata.reflect(engine, only=[*names, "flowkit_sent", "flowkit_objects"])
    with harness.session() as session:

        def rows(name: str, *columns: str) -> list[Row]:
            table = metadata.tables[name]
            found = session.execute(select(*(table.c[column] for column in columns or table.c.keys())))
            return [_unfolded(row) for row in found.mappings()]

        end: End = {f"table {name}": rows(name) for name in names}
        end["sent"] = rows("flowkit_sent")
        end["kept objects"] = rows("flowkit_objects", "space", "key", "value")
    end["dead letters"] = [
        _unfolded({"flow": one.flow, "reason": one.reason, "error": one.error, "body": one.message.body})
        for one in harness.dead()
    ]
    end["ledger"] = [
        {"flow": flow, "accepted": one.accepted, "applied": one.applied, "dead": one.dead, "balanced": one.balanced}
        for flow, one in harness.balances().items()
    ]
    return end, set(_numbers(metadata.tables[name] for name in names))


def files(directory: Path) -> list[Row]:
    """The files below a directory."""
    return [
        {"path": str(path.relative_to(directory)), "content": _digest(path.read_bytes())}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]


def varying(one: End, other: End) -> Columns:
    """The columns that differ between two runs which should be the same, such as times and random ids."""
    return {
        (place, column)
        for place, rows in one.items()
        if len(rows) == len(other[place])
        for column in {column for row in (*rows, *other[place]) for column in row}
        if Counter(repr(row.get(column)) for row in rows) != Counter(repr(row.get(column)) for row in other[place])
    }


def without(end: End, ignored: Columns) -> End:
    """An end without some columns."""
    return {
        place: [{name: value for name, value in row.items() if (place, name) not in ignored} for row in rows]
        for place, rows in end.items()
    }


def differences(expected: End, found: End) -> list[Difference]:
    """What is different, place by place. The order of rows does not count."""
    different = []
    for place, rows in expected.items():
        before, after = Counter(map(_key, rows)), Counter(map(_key, found[place]))
        if before != after:
            known = {_key(row): row for row in (*rows, *found[place])}
            missing, surplus = ([known[key] for key in part.elements()] for part in (before - after, after - before))
            different.append(Difference(place, missing, surplus))
    return different


def _numbers(tables: Iterable[Table]) -> Iterable[tuple[str, str]]:
    for table in tables:
        key = list(table.primary_key)
        if len(key) == 1 and key[0].type.python_type is int:
            yield f"table {table.name}", key[0].name
        for column in table.columns:
            if column.foreign_keys and column.type.python_type is int:
                yield f"table {table.name}", column.name


def _unfolded(row: Mapping[Any, Any]) -> Row:
    """A row whose JSON objects are columns of their own, so that one that varies does not hide the others."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        try:
            found = from_json(value) if isinstance(value, bytes | str) else None
        except ValueError:
            found = None
        if isinstance(found, dict):
            flat |= {f"{name}.{field}": inner for field, inner in found.items()}
        else:
            flat[name] = value
    return flat


def _key(row: Row) -> str:
    return repr(sorted(row.items(), key=lambda item: item[0]))


def _shown(row: Row) -> str:
    return ", ".join(f"{name} {value!r:.40}" for name, value in row.items() if value is not None)


def _digest(content: bytes) -> str:
    text = content.decode("utf-8", "backslashreplace")
    return text if len(text) <= 200 else f"{len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()[:16]}"
