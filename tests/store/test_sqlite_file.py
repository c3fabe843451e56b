"""The SQLite file of a store that is removed or replaced while it is in use."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from flowkit import StoreUnavailable
from flowkit.errors import StoreLost
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.services import free_port
from tests.support.instances import Instances, request
from tests.support.shop import Order, new_app
from tests.support.waiting import wait_until

SECONDS = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flowkit.db"


def remove(path: Path) -> None:
    for one in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        one.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, f"{path}.copy")
    os.replace(f"{path}.copy", path)


@pytest.mark.parametrize("lose", [remove, replace])
def test_row_d16_nothing_is_accepted_into_a_file_that_was_removed_or_replaced(
    path: Path, lose: Callable[[Path], None]
) -> None:
    app = new_app()
    app.flow(app.channel("orders", Order))(lambda order: None)
    with closing(connect(Settings(database_url=f"sqlite:///{path}"))) as services:
        app.connect(services)
        app.publish("orders", Order(name="a"))
        lose(path)
        with pytest.raises(StoreUnavailable, match=rf"{path} was removed or replaced.*; nothing is committed"):
            app.publish("orders", Order(name="b"))
        with Session(services.store.dialect.engine) as session, pytest.raises(StoreLost):  # type: ignore[attr-defined]
            app.outbox(session)


def test_row_d16_a_file_that_is_named_from_a_folder_stays_that_file_elsewhere(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    app.flow(app.channel("orders", Order))(lambda order: None)
    monkeypatch.chdir(path.parent)
    with Harness(app, f"sqlite:///{path.name}") as harness:
        monkeypatch.chdir("/")
        harness.publish("orders", Order(name="a"))
        harness.until_quiet()
        assert harness.balances()["shop.<lambda>"].applied == 1


def test_row_d16_a_worker_whose_log_was_removed_is_told(path: Path) -> None:
    app = new_app()
    app.flow(app.channel("orders", Order))(lambda order: None)
    with Harness(app, f"sqlite:///{path}") as harness:
        harness.store.wait(0)
        harness.worker.maintenance.tick()
        Path(f"{path}-wal").unlink()
        harness.clock.advance(2)
        with pytest.raises(StoreLost, match="-wal was removed"):
            harness.worker.maintenance.tick()


class Instance(Instances):
    """One whose output is read."""

    def serve(self, log: Path) -> tuple[int, subprocess.Popen[bytes]]:
        port = free_port()
        command = [*self.command, "--http", f"127.0.0.1:{port}", "--admin", "none", "--workers", "2"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=self.environment, stderr=output)
        wait_until(lambda: self.ready(port), SECONDS)
        return port, process


@pytest.fixture
def instances(path: Path) -> Iterator[Instance]:
    made = Instance(f"sqlite:///{path}")
    yield made
    made.close()


@pytest.mark.processes
def test_row_d16_an_instance_whose_file_was_removed_accepts_nothing_and_ends_by_name(
    instances: Instance, path: Path, tmp_path: Path
) -> None:
    port, process = instances.serve(tmp_path / "log")
    try:
        assert request(port, "POST", "/orders", b'{"name": "a"}')[0] == 202
        wait_until(lambda: instances.applied() == {"a": 1}, SECONDS)
        remove(path)
        answers = set()

        def ended() -> bool:
            try:
                answers.add(request(port, "POST", "/orders", b'{"name": "b"}')[0])
            except OSError:
                """Its workers serve no more."""
            return process.poll() is not None

        wait_until(ended, SECONDS)
        assert answers <= {503}
        assert process.returncode == 2, "no supervisor that starts it again by itself makes it better"
        log = (tmp_path / "log").read_text()
        assert f"{path} was removed or replaced" in log
        assert "Traceback" not in log
        assert not path.exists(), "nobody made a new one"
    finally:
        process.kill()
        process.wait()
