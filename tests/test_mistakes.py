"""Mistakes in an app, its tables and its settings: told of at the check and at the start, before any message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, text

from flowkit import App, ConfigError
from flowkit.cli.describe import check
from flowkit.cli.run import _check
from flowkit.cli.schema import upgrade
from flowkit.config import connect

APP = """
from flowkit import App
from tests.test_mistakes import tables

app = App("shop", metadata=tables("id", "Total"))

@app.flow("orders")
def accept(order: dict) -> None:
    pass
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The error of an app at the check, which is that at the start."""

    def told(source: str, error: type[Exception] = ConfigError) -> str:
        (tmp_path / "mistaken.py").write_text(source)
        with pytest.raises(error) as found:
            check(str(tmp_path / "mistaken.py"))
        return str(found.value)

    return told


def tables(*columns: str) -> MetaData:
    """The tables of an app, which has one in a version of its own."""
    metadata = MetaData()
    Table("orders", metadata, *(Column(name, Integer, primary_key=name == "id") for name in columns))
    return metadata


def test_row_e16_a_table_that_lacks_a_column_is_told_of(
    database_url: str, monkeypatch: pytest.MonkeyPatch, told: Callable[..., str]
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    upgrade()
    services = connect()
    store: Any = services.store
    tables("id").create_all(store.dialect.engine)
    why = (
        "app shop has columns that are not in the database of FLOWKIT_DATABASE_URL: orders.Total; add them by your "
        "migrations (ALTER TABLE … ADD COLUMN …): FlowKit changes no table that is there"
    )
    assert told(APP) == why
    app = App("shop", metadata=tables("id", "Total"))
    app.flow("orders")(lambda order: None)
    with pytest.raises(ConfigError, match="columns that are not in"):
        _check(app, services)
    with store.dialect.engine.connect() as connection:
        connection.execute(text('ALTER TABLE orders ADD COLUMN "Total" integer'))
        connection.commit()
    _check(app, services)
    app.close()
