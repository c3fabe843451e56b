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


def test_row_e16_a_setting_that_is_misspelt_is_refused(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWKIT_DATABSE_URL", sqlite_url)
    why = "FLOWKIT_DATABSE_URL is no setting, and would do nothing; write FLOWKIT_DATABASE_URL"
    assert told(APP) == why
    app = App("shop")
    app.flow("orders")(lambda order: None)
    with pytest.raises(ConfigError, match=why):
        app.publish("orders", {})
    assert not (tmp_path / "flowkit.db").exists(), "nothing is accepted by a database that nobody meant"


def test_row_e16_a_setting_that_nobody_knows_is_told_of(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "known.py").write_text(APP)
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("FLOWKIT_DATABASE_ULR", "")
    monkeypatch.setenv("FLOWKIT_SERVICE_PORT_HTTP", "80")  # as Kubernetes does for a service of that name
    monkeypatch.setenv("FLOWKIT_SHOP_PORT_80_TCP_ADDR", "10.0.0.1")
    why = "FLOWKIT_DATABASE_ULR is no setting, and does nothing; the nearest one is FLOWKIT_DATABASE_URL"
    check(str(tmp_path / "known.py"))
    assert capsys.readouterr().out == f"{why}\napp shop: 1 flows, 1 channels: 1 warnings\n"
    app = App("shop")
    app.flow("orders")(lambda order: None)
    services = connect()
    _check(app, services)
    app.close()
    assert caplog.messages == [why]
