"""The files of an SQLite store: nobody else reads them, and no row and no link makes FlowKit touch another file."""

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.message import new_id
from flowkit.ports import WorkerInfo
from flowkit.services import open_store
from flowkit.settings import Settings
from tests.support.shop import Base


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def store(usual_umask: None, sqlite_url: str) -> Iterator[Any]:
    with closing(open_store(Settings(database_url=sqlite_url))) as store:
        yield store


def worker(id: str = "") -> WorkerInfo:
    return WorkerInfo(id or new_id(), "shop", "host", 1, "", "", "")


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_what_flowkit_makes_only_its_user_can_read(store: Any, tmp_path: Path) -> None:
    store.schema.create_tables(Base.metadata)
    store.fleet.join(one := worker())
    store.wait(0.0)  # as a worker does, who keeps a connection
    made = {path.name: mode(path) for path in (*tmp_path.iterdir(), *tmp_path.glob("*/*"))}
    assert made == {
        "flowkit.db": "0o600", "flowkit.db-wal": "0o600", "flowkit.db-shm": "0o600", "flowkit.db-workers": "0o700",
        one.id: "0o600",
    }  # fmt: skip


def test_a_database_that_is_there_keeps_its_mode_and_its_log_follows(usual_umask: None, tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    path.touch(0o660)
    path.chmod(0o660)
    with closing(open_store(Settings(database_url=f"sqlite:///{path}"))) as store:
        store.wait(0.0)
        assert {mode(one) for one in tmp_path.iterdir()} == {"0o660"}


def test_a_new_database_behind_a_link_is_as_private(usual_umask: None, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    with closing(open_store(Settings(database_url=f"sqlite:///{tmp_path}/link.db"))):
        assert mode(tmp_path / "real.db") == "0o600"


@pytest.mark.parametrize("where", ["absolute", "above", "dots", "link"])
def test_a_row_of_a_worker_makes_nobody_touch_another_file(store: Any, tmp_path: Path, where: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    store.fleet.join(one := worker())
    if where == "link":
        (tmp_path / "flowkit.db-workers" / "linked").symlink_to(precious)
    forged = {"absolute": str(precious), "above": "../precious", "dots": "..", "link": "linked"}[where]
    with store.transaction() as unit:
        unit.write("UPDATE flowkit_workers SET id = ?, locked = 1 WHERE id = ?", [(forged, one.id)])
    store.fleet.join(two := worker())
    store.fleet.beat(two.id, "ready")
    assert precious.read_text() == "kept"
    assert {other.id for other in store.ledger.workers()} == {two.id}, "the row that nobody holds is gone"


def test_a_link_in_place_of_the_folder_of_workers_is_refused(store: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "flowkit.db-workers").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"flowkit\.db-workers is a link, or no folder; remove it"):
        store.fleet.join(worker())
    assert list(elsewhere.iterdir()) == []
