"""The tables and indexes of the store's databases."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any
from unittest.mock import patch

from .commands import call
from .package import Lines, Package


def of_sqlite(file: Path) -> Lines:
    """The tables and indexes of a file that `flowkit db upgrade` made."""
    with patch.dict(os.environ, {"FLOWKIT_DATABASE_URL": f"sqlite:///{file}"}):
        code, said = call("db", "upgrade")
        assert code == 0, said
    with contextlib.closing(sqlite3.connect(file)) as database:
        tables = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        for table, sql in tables:
            yield f"sqlite {table}: table {sql.rpartition(')')[2].strip()}".strip()
            for _, name, type, required, default, key in database.execute(f"PRAGMA table_info({table})"):
                shown = f"{type}{' NOT NULL' * required}, default {default}, primary key {key}"
                yield f"sqlite {table}.{name}: {shown}"
        for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE type <> 'table'"):
            yield f"sqlite {name}: {' '.join((sql or 'automatic').split())}"


def of_postgresql(package: Package) -> Lines:
    """The tables and indexes, as SQLAlchemy writes them for PostgreSQL."""
    from sqlalchemy import MetaData
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

    def shown(element: Any) -> str:
        return " ".join(str(element.compile(dialect=postgresql.dialect())).split())  # type: ignore[no-untyped-call]

    metadata = package.that(lambda one: isinstance(one, MetaData) and "flowkit_messages" in one.tables)
    for table in metadata.tables.values():
        columns = [shown(CreateColumn(one)) for one in table.columns]
        rest = shown(CreateTable(table))
        for column in columns:
            yield f"postgresql {table.name}.{column.replace(' ', ': ', 1)}"
            rest = rest.replace(f"{column}, ", "", 1).replace(column, "", 1)
        yield f"postgresql {table.name}: {rest}"
        yield from (f"postgresql {one.name}: {shown(CreateIndex(one))}" for one in table.indexes)
