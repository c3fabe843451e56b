"""The final state of a run, when nothing is pending any more, and the differences between two final states."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
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
"""The database records sent messages in the transaction that sends them, so that no crash separates the two."""
SHOWN = 3
"""Most rows of a difference that are shown."""
SHOWN_CHARACTERS = 200
"""Most characters of a value that are shown."""
_NUMBER = r"(?:\b[0-9a-fA-F]{4,}\b|\d+)"
MASKS = {
    "numbers": re.compile(rf"[+-]?{_NUMBER}(?:(?:e[+-]?|[.:+T-]){_NUMBER})*"),
    "words": re.compile(r"[\w.:+/=-]+"),
}
"""The parts that are masked in a varying text: first numbers, with times, UUIDs and hexadecimal digests; then words."""
MASK = "#"

Row = Mapping[str, Any]
End = dict[str, list[Row]]
"""Place -> its rows: each table, sent messages, objects, replies, dead letters, the ledger, files and observations."""
Columns = set[tuple[str, str]]
"""Place and column."""


class Difference(NamedTuple):
    """The difference in one place: rows that are missing, and surplus rows."""

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
    """Record the sent messages from now on. SQLite only."""
    with harness.store.dialect.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.executescript(SENT)


def read(harness: Harness) -> tuple[End, Columns]:
    """Read the final state from the database, and the columns with generated numbers: primary keys and references."""
    engine = harness.store.dialect.engine
    metadata = MetaData()
    names = [name for name in inspect(engine).get_table_names() if not name.startswith("flowkit_")]
    metadata.reflect(engine, only=[*names, "flowkit_sent", "flowkit_objects", "flowkit_replies"])
    with harness.session() as session:

        def rows(name: str, *columns: str) -> list[Row]:
            table = metadata.tables[name]
            found = session.execute(select(*(table.c[column] for column in columns or table.c.keys())))
            return [_unfolded(row) for row in found.mappings()]

        end: End = {f"table {name}": rows(name) for name in names}
        end["sent"] = rows("flowkit_sent")
        end["kept objects"] = rows("flowkit_objects", "space", "key", "value")
        end["replies"] = rows("flowkit_replies", "app", "route", "principal", "id", "reply")
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
    """A row for each file and folder below a directory."""
    return [entry(path, str(path.relative_to(directory))) for path in sorted(directory.rglob("*"))]


def observed(value: object, at: str = "") -> Iterator[Row]:
    """A row for each leaf of nested lists, tuples, sets and dicts. Its only column is the path of the leaf."""
    inner: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, list | tuple):
        inner = list(enumerate(value))
    elif isinstance(value, Set):
        inner = list(enumerate(sorted(value, key=repr)))
    for name, one in inner:
        yield from observed(one, f"{at}[{name!r}]")
    if not inner:
        yield {at or "value": value if isinstance(value, str | bytes | int | float | None) else repr(value)}


class Common:
    """The common part of two undisturbed runs. Only this part of other runs is compared.

    `ignored`: columns of tables that vary, and are left out. `masked`: texts of files and observations that are
    compared without their numbers or, if they still vary, without their words. `incomparable`: texts of which nothing
    is left. All three are lists of names to show.
    """

    def __init__(self, one: End, other: End) -> None:
        self._known = _paths(one) & _paths(other)
        self._masks: dict[tuple[str, str], str] = {}
        self._left_out: Columns = set()
        self._left_out = {column for column in self._varying(one, other) if not _by_text(column[0])}
        for mask in MASKS:
            self._masks |= dict.fromkeys(self._varying(one, other), mask)
        lost = self._varying(one, other) | self._blank(one)
        self.ignored = sorted(f"{column} of {place}" for place, column in self._left_out)
        self.masked = sorted(f"{mask} in {column} of {place}" for (place, column), mask in self._masks.items())
        self.incomparable = sorted(f"{column} of {place}" for place, column in lost)

    def of(self, end: End) -> End:
        """A final state without the varying parts. Each file that both runs have becomes its own place."""
        end = dict(end)
        if "files" in end:
            rows = end.pop("files")
            end |= {
                f"file {path}": [{"content": row.get("content")} for row in rows if row["path"] == path]
                for path in sorted(self._known)
            }
            end["files"] = [row for row in rows if row["path"] not in self._known]
        return {
            place: [
                {name: _masked(value, self._masks.get((place, name))) for name, value in row.items()} for row in rows
            ]
            for place, rows in without(end, self._left_out).items()
        }

    def _varying(self, one: End, other: End) -> Columns:
        one, other = self.of(one), self.of(other)
        return {
            (place, column)
            for place, rows in one.items()
            if len(rows) == len(other[place])
            for column in {column for row in (*rows, *other[place]) for column in row}
            if Counter(repr(row.get(column)) for row in rows) != Counter(repr(row.get(column)) for row in other[place])
        }

    def _blank(self, end: End) -> Columns:
        """Files and observations that are masked completely."""
        return {
            (place, column)
            for place, rows in self.of(end).items()
            for row in rows
            for column, value in row.items()
            if (place, column) in self._masks and place != "files" and column in ("content", "value")
            if re.fullmatch(rf"{MASK}|<\w+ {MASK}>", value)
        }


def without(end: End, ignored: Columns) -> End:
    """A final state without these columns."""
    return {
        place: [{name: value for name, value in row.items() if (place, name) not in ignored} for row in rows]
        for place, rows in end.items()
    }


def differences(expected: End, found: End) -> list[Difference]:
    """The differences, place by place. The order of rows does not count."""
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
    """A row in which each member of a JSON object is its own column, so that a varying one does not hide the others."""
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
    return ", ".join(f"{name} {brief(value)}" for name, value in row.items() if value is not None)


def brief(value: object) -> str:
    """A value as text; if it is long, its beginning, length and hash."""
    text = repr(value)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:40]}… ({len(text):,} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"


def entry(path: Path, name: str) -> Row:
    """The row of a file, with its content, or of a folder, under `name`."""
    if path.is_file():
        return {"path": name, "content": path.read_bytes().decode("utf-8", "backslashreplace")}
    return {"path": f"{name}/" if path.is_dir() else name}


def _paths(end: End) -> set[str]:
    return {row["path"] for row in end.get("files", ()) if "content" in row}


def _by_text(place: str) -> bool:
    """Whether a place is outside of the database. Only its text shows then that it was changed twice."""
    return place in ("files", "observe()") or place.startswith("file ")


def _masked(value: object, mask: str | None) -> Any:
    """A value without its varying parts. A value that is not text keeps its type."""
    if mask is None:
        return value
    if isinstance(value, str):
        return MASKS[mask].sub(MASK, value)
    return f"<{type(value).__name__} {MASKS[mask].sub(MASK, repr(value))}>"
