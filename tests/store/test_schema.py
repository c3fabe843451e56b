"""The schema over versions: a migration only adds, or exchanges an index, and workers of the version before go on."""

import ast
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config

from flowkit.cli.commands import main
from flowkit.errors import ConfigError
from flowkit.host.worker_process import join
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store import tables
from tests.support.migrations import MIGRATIONS, at

ADDS = {"create_table", "create_index", "drop_index", "add_column", "get_bind"}
"""Older code does not know by which index it is quick."""


@pytest.mark.parametrize("path", MIGRATIONS[1:], ids=lambda path: path.stem)
def test_a_migration_only_adds_what_older_code_need_not_know(path: Path) -> None:
    """A new column has a default, or may be empty: older code inserts rows without it."""
    calls = [one for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.Call)]
    operations = [one for one in calls if ast.unparse(one.func).startswith("op.")]
    assert {ast.unparse(one.func).removeprefix("op.") for one in operations} <= ADDS
    for one in operations:
        if ast.unparse(one.func) == "op.add_column":
            column = one.args[1]
            assert isinstance(column, ast.Call)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in column.keywords}
            assert options.get("nullable") != "False" or "server_default" in options
        if ast.unparse(one.func) == "op.create_index" and "unique" in ast.unparse(one):
            assert "'name'" in ast.unparse(one), "rows of older code have to go on fitting: it holds their primary key"


@pytest.mark.parametrize("path", MIGRATIONS[:-1], ids=lambda path: path.stem)
def test_the_schema_of_a_version_before_is_upgraded_and_keeps_what_is_in_it(database_url: str, path: Path) -> None:
    store: Any = open_store(Settings(database_url=database_url), check=False)
    if database_url.startswith("sqlite"):
        tables.metadata.drop_all(store.dialect.engine)  # which opening it had made
    config = Config()
    config.set_main_option("script_location", str(path.parent.parent))
    with store.dialect.engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, path.stem.partition("_")[0])
        connection.exec_driver_sql(
            "INSERT INTO flowkit_counters (flow, lane, accepted, applied) VALUES ('shop.accept', 'a', 3, 3)"
        )
        connection.commit()
    assert store.schema.upgrade() == tables.VERSION
    balance = store.ledger.balances()["shop.accept"]
    assert (balance.accepted, balance.applied, balance.unidentified) == (3, 3, 0)
    assert store.identity(), "it has an id"
    store.close()


def test_older_code_goes_on_on_a_newer_schema(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(Settings(database_url=database_url), check=False)
    store.schema.upgrade()
    store.close()
    monkeypatch.setattr(tables, "VERSION", tables.OLDEST)
    store = open_store(Settings(database_url=database_url))
    assert store.subscribers.channels() == {}
    store.close()


def test_code_that_is_too_old_for_a_schema_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(Settings(database_url=database_url), check=False)
    store.schema.upgrade()
    store.close()
    monkeypatch.setattr(tables, "VERSION", "0000")
    with pytest.raises(ConfigError, match=r"has FlowKit schema .* this version needs 0000"):
        open_store(Settings(database_url=database_url))


SHOP = """from flowkit import App
app = App("shop")
app.flow(app.channel("notes", str), name="note")(lambda body: None)
"""
LOOKS = ("status", "audit", "dead list", "subscriptions list", "db check", "check shop.py", "describe shop.py")


@pytest.mark.parametrize("command", LOOKS)
def test_a_look_changes_no_schema(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/flowkit.db"
    at(url, "0005")
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", url)
    monkeypatch.setattr(sys, "argv", ["flowkit", *command.split()])
    with pytest.raises(SystemExit):
        main()
    said = "".join(capsys.readouterr())
    assert f"has FlowKit schema 0005, and this version needs {tables.VERSION}; run: flowkit db upgrade" in said
    with closing(sqlite3.connect(tmp_path / "flowkit.db")) as connection:
        assert connection.execute("SELECT version_num FROM flowkit_version").fetchall() == [("0005",)]


def test_a_worker_of_a_newer_version_upgrades_the_schema_of_its_supervisor(sqlite_url: str) -> None:
    at(sqlite_url, "0005")
    join(Settings(database_url=sqlite_url)).close()
    open_store(Settings(database_url=sqlite_url), create=False).close()


def test_upgrades_at_once_do_not_hinder_each_other(database_url: str) -> None:
    """An empty database on PostgreSQL; on SQLite, whose schema is made as it is opened, one of the first version."""
    if database_url.startswith("sqlite"):
        at(database_url, "0001")
    many = 4
    barrier = threading.Barrier(many)

    def upgrade(_: int) -> str:
        barrier.wait(30)
        with closing(open_store(Settings(database_url=database_url), check=False)) as store:
            return str(store.schema.upgrade())

    with ThreadPoolExecutor(many) as pool:
        assert list(pool.map(upgrade, range(many))) == [tables.VERSION] * many
    open_store(Settings(database_url=database_url)).close()
