"""Both stores pass the kit, and the migrations make the schema that the tables declare."""

from pathlib import Path
from typing import Any

import pytest

from flowkit.testing.conformance import StoreConformance
from tests.support.conformance import OnPostgresql, OnSqlite, opened

pytestmark = pytest.mark.migrated


class TestSqliteStore(OnSqlite, StoreConformance):
    def open(self) -> Any:
        return opened(self.url)


@pytest.mark.postgresql
class TestPostgresqlStore(OnPostgresql, StoreConformance):
    def open(self) -> Any:
        return opened(self.url)


def test_the_migrations_make_the_schema_that_the_tables_declare(tmp_path: Path) -> None:
    from sqlalchemy import create_engine, inspect

    from flowkit.store import tables
    from flowkit.store.migrations import upgrade

    shapes = []
    for name in ("created", "migrated"):
        engine = create_engine(f"sqlite:///{tmp_path}/{name}.db")
        with engine.connect() as connection:
            if name == "created":
                tables.metadata.create_all(connection)
                connection.execute(tables.version.insert().values(version_num=tables.VERSION))
                connection.commit()
            else:
                upgrade(connection, lambda: "id")
            look = inspect(connection)
            shapes.append(
                {
                    table: (
                        [(one["name"], str(one["type"]), one["nullable"]) for one in look.get_columns(table)],
                        look.get_pk_constraint(table)["constrained_columns"],
                        sorted((str(one["name"]), one["column_names"]) for one in look.get_indexes(table)),
                    )
                    for table in look.get_table_names()
                    if table != tables.version.name
                }
            )
            assert connection.execute(tables.version.select()).scalar() == tables.VERSION
        engine.dispose()
    assert shapes[0] == shapes[1]
