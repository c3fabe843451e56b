"""The supervisor, with workers that do nothing but be ready."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from flowkit.config import Settings, SystemClock, open_store
from flowkit.engine.supervisor import Supervisor
from tests.services.postgresql import PostgreSQL
from tests.test_web import until

ROOT = Path(__file__).parent.parent

READY = """
import os, signal, sys
from flowkit.engine.slots import Slots
signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
slots = Slots(int(os.environ["FLOWKIT_SLOTS"]))
slots.ready = True
while True:
    signal.pause()
"""


@pytest.fixture
def supervisor(sqlite_url: str) -> Iterator[Supervisor]:
    store = open_store(Settings(database_url=sqlite_url), check=False)
    store.upgrade()
    with closing(store):
        made = Supervisor([sys.executable, "-c", READY], 2, store, SystemClock(), random.random)
        yield made
        made.stopping = True
        made.kill()
        until(lambda: not made.step())
        made.close()


def settled(supervisor: Supervisor, workers: int) -> bool:
    """Step until so many workers live, nobody is to be replaced, and all are ready."""
    supervisor.step()
    return len(supervisor.pids) == workers and not supervisor._old and supervisor.ready == 1


@pytest.mark.processes
def test_who_ends_for_another_number_of_workers_is_not_replaced(supervisor: Supervisor) -> None:
    until(lambda: settled(supervisor, 2))
    before = supervisor.pids
    supervisor.roll()
    supervisor.step()  # the first heir is there
    supervisor.resize(1)
    until(lambda: settled(supervisor, 1))
    for _ in range(10):
        assert settled(supervisor, 1)
    assert set(supervisor.pids).isdisjoint(before)


REFUSED = """
import os, pathlib, signal, sys
from flowkit.engine.slots import Slots
refused = pathlib.Path(sys.argv[1])
if refused.exists():
    sys.exit(2)
refused.touch()
slots = Slots(int(os.environ["FLOWKIT_SLOTS"]))
slots.ready = True
signal.pause()
"""


@pytest.mark.processes
def test_a_worker_that_is_refused_once_its_instance_was_ready_is_tried_again(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a broker that has lost its permissions; an instance that never was ready ends with that status."""
    store = open_store(Settings(database_url=sqlite_url), check=False)
    store.upgrade()
    refused = tmp_path / "refused"
    refused.touch()
    with closing(store):
        command = [sys.executable, "-c", REFUSED, str(refused)]
        never = Supervisor(command, 1, store, SystemClock(), random.random)
        with closing(never):
            until(lambda: not never.step())
            assert never.status == 2
        assert not caplog.records
        made = Supervisor(command, 1, store, SystemClock(), random.random)
        with closing(made):
            refused.unlink()
            until(lambda: settled(made, 1))
            made.kill()
            until(lambda: made.step() and caplog.text.count("was refused (exit status 2)") == 2)
            refused.unlink()
            until(lambda: settled(made, 1))
            assert made.status == 0
            made.stopping = True
            made.kill()
            until(lambda: not made.step())


@pytest.mark.processes
def test_a_worker_that_the_database_refuses_for_a_while_is_back_afterwards(
    tmp_path: Path, postgresql: PostgreSQL, postgresql_url: str
) -> None:
    """Its role loses a right that it needs to begin, and gets it again."""
    store: Any = open_store(Settings(database_url=postgresql_url), check=False)
    store.upgrade()
    database = psycopg.connect(postgresql_url, autocommit=True)
    database.execute("DROP ROLE IF EXISTS shaky")
    database.execute("CREATE ROLE shaky LOGIN PASSWORD 'secret'")
    database.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO shaky")
    (tmp_path / "shaky.py").write_text(
        "from flowkit import App\n"
        "app = App('shop')\n"
        "app.flow(app.channel('orders', dict), name='orders')(lambda order: None)\n"
    )
    url = make_url(postgresql_url).set(username="shaky", password="secret").render_as_string(hide_password=False)
    instance = subprocess.Popen(
        [sys.executable, "-m", "flowkit", "run", "shaky.py"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLOWKIT_DATABASE_URL": url},
    )  # fmt: skip
    assert instance.stderr is not None
    try:

        def ready() -> set[int]:
            return {one.pid for one in store.ledger.workers() if one.state == "ready"}

        until(lambda: bool(ready()), 90)
        (first,) = ready()
        database.execute("REVOKE SELECT ON flowkit_version FROM shaky")
        os.kill(first, signal.SIGKILL)
        assert any("was refused (exit status 2) and is started again" in line for line in instance.stderr)
        database.execute("GRANT SELECT ON flowkit_version TO shaky")
        until(lambda: bool(ready() - {first}), 90)
        instance.terminate()
        instance.communicate(timeout=60)
        assert instance.returncode == 0
    finally:
        instance.kill()
        instance.communicate()
        store.close()
        database.execute("DROP OWNED BY shaky; DROP ROLE shaky")
        database.close()
