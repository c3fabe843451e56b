"""Two SQLite libraries in one process, on one file."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import flowkit
from flowkit import App, ConfigError, sqlite_driver
from flowkit.services import connect
from flowkit.settings import Settings
from tests.support.shop import Order, new_app

pytestmark = pytest.mark.skipif(sqlite_driver() is sqlite3, reason="there is one library here")
REFUSED = r"sqlite3 .* through pysqlite3.*module=flowkit\.sqlite_driver\(\)"
TAKES_THE_LOCK = """
import sys
from flowkit import sqlite_driver
connection = sqlite_driver().connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
    print("locked by both")
except sqlite_driver().OperationalError as error:
    print(error)
"""


def other_process(path: Path) -> str:
    """What another process hears that wants the write lock."""
    command = [sys.executable, "-c", TAKES_THE_LOCK, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_row_b3_a_close_by_the_one_library_drops_the_lock_of_the_other(tmp_path: Path) -> None:
    """Why two are refused: POSIX locks belong to the process, and any close of the file drops them."""
    path = tmp_path / "bare.db"
    with closing(sqlite_driver().connect(path, isolation_level=None)) as held:
        held.execute("PRAGMA journal_mode = WAL")
        held.execute("CREATE TABLE a (b)")
        held.execute("BEGIN IMMEDIATE")
        assert other_process(path) == "database is locked"
        with closing(sqlite3.connect(path)) as other:
            other.execute("SELECT * FROM a").fetchall()
        assert other_process(path) == "locked by both"


@pytest.fixture
def app(sqlite_url: str) -> Iterator[App]:
    app = new_app()
    app.flow(app.channel("orders", Order))(lambda order: None)
    app.connect(connect(Settings(database_url=sqlite_url)))
    yield app
    app.close()


def test_row_b3_the_other_library_cannot_open_the_file(app: App, tmp_path: Path) -> None:
    path = tmp_path / "flowkit.db"
    (tmp_path / "link").symlink_to(path)
    for name in (str(path), path, str(path).encode(), tmp_path / "link", tmp_path / ".." / tmp_path.name / path.name):
        with pytest.raises(ConfigError, match=REFUSED):
            sqlite3.connect(name)
    for uri in (f"file:{path}?mode=ro", f"file://{path}", path.as_uri()):
        with pytest.raises(ConfigError, match=REFUSED):
            sqlite3.connect(uri, uri=True)
    for elsewhere in (":memory:", "", tmp_path / "other.db"):
        sqlite3.connect(elsewhere).close()


def test_row_b3_an_engine_of_the_other_library_is_refused_and_one_of_the_same_is_not(app: App, sqlite_url: str) -> None:
    with Session(create_engine(sqlite_url)) as session, pytest.raises(ConfigError, match=REFUSED):
        app.outbox(session)
    engine = create_engine(sqlite_url, module=flowkit.sqlite_driver())
    with Session(engine) as session, session.begin():
        app.outbox(session).send("orders", Order(name="a"))
    engine.dispose()


def test_row_b3_a_session_that_was_connected_before_is_refused(sqlite_url: str) -> None:
    connect(Settings(database_url=sqlite_url)).close()
    app = new_app()
    app.flow(app.channel("orders", Order))(lambda order: None)
    engine = create_engine(sqlite_url)
    with Session(engine) as session:
        session.connection()
        app.connect(connect(Settings(database_url=sqlite_url)))
        with pytest.raises(ConfigError, match=REFUSED):
            app.outbox(session)
    engine.dispose()
    app.close()


def test_row_b3_when_the_store_is_closed_any_library_may_open_the_file(app: App, tmp_path: Path) -> None:
    app.close()
    made: Any = sqlite3.connect(tmp_path / "flowkit.db")
    made.close()
