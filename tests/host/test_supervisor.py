"""The supervisor, with workers that do nothing but be ready."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from flowkit.host.agent import Agent
from flowkit.host.sockets import listen
from flowkit.host.supervisor import Child, Supervisor
from flowkit.host.systemd import ServiceManager
from flowkit.services import SystemClock, open_store
from flowkit.settings import Settings
from tests.services.postgresql import PostgreSQL
from tests.support import ROOT
from tests.support.waiting import wait_until

READY = """
import os, signal, sys
from flowkit.engine.in_flight import Slots
signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
slots = Slots(int(os.environ["FLOWKIT_SLOTS"]))
slots.ready = True
while True:
    signal.pause()
"""


@pytest.fixture
def supervisor(sqlite_url: str) -> Iterator[Supervisor]:
    store = open_store(Settings(database_url=sqlite_url), check=False)
    store.schema.upgrade()
    with closing(store):
        made = Supervisor([sys.executable, "-c", READY], 2, store, SystemClock(), random.random)
        yield made
        made.stopping = True
        made.kill()
        wait_until(lambda: not made.step())
        made.close()


def settled(supervisor: Supervisor, workers: int) -> bool:
    """Step until so many workers live, nobody is to be replaced, and all are ready."""
    supervisor.step()
    return len(supervisor.pids) == workers and not supervisor._old and supervisor.ready == 1


@pytest.mark.processes
def test_who_ends_for_another_number_of_workers_is_not_replaced(supervisor: Supervisor) -> None:
    wait_until(lambda: settled(supervisor, 2))
    before = supervisor.pids
    supervisor.roll()
    supervisor.step()  # the first heir is there
    supervisor.resize(1)
    wait_until(lambda: settled(supervisor, 1))
    for _ in range(10):
        assert settled(supervisor, 1)
    assert set(supervisor.pids).isdisjoint(before)


REFUSED = """
import os, pathlib, signal, sys
from flowkit.engine.in_flight import Slots
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
    store.schema.upgrade()
    refused = tmp_path / "refused"
    refused.touch()
    with closing(store):
        command = [sys.executable, "-c", REFUSED, str(refused)]
        never = Supervisor(command, 1, store, SystemClock(), random.random)
        with closing(never):
            wait_until(lambda: not never.step())
            assert never.status == 2
        assert not caplog.records
        made = Supervisor(command, 1, store, SystemClock(), random.random)
        with closing(made):
            refused.unlink()
            wait_until(lambda: settled(made, 1))
            made.kill()
            wait_until(lambda: made.step() and caplog.text.count("was refused (exit status 2)") == 2)
            refused.unlink()
            wait_until(lambda: settled(made, 1))
            assert made.status == 0
            made.stopping = True
            made.kill()
            wait_until(lambda: not made.step())


@pytest.mark.processes
def test_a_worker_that_the_database_refuses_for_a_while_is_back_afterwards(
    tmp_path: Path, postgresql: PostgreSQL, postgresql_url: str
) -> None:
    """Its role loses a right that it needs to begin, and gets it again."""
    store: Any = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
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

        wait_until(lambda: bool(ready()), 90)
        (first,) = ready()
        database.execute("REVOKE SELECT ON flowkit_version FROM shaky")
        os.kill(first, signal.SIGKILL)
        assert any("flowkit_version" in line for line in instance.stderr), "it ended, and nobody started another worker"
        database.execute("GRANT SELECT ON flowkit_version TO shaky")
        wait_until(lambda: bool(ready() - {first}), 90)
        instance.terminate()
        instance.communicate(timeout=60)
        assert instance.returncode == 0
    finally:
        instance.kill()
        instance.communicate()
        store.close()
        database.execute("DROP OWNED BY shaky; DROP ROLE shaky")
        database.close()


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open no more files."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))


@pytest.mark.processes
@pytest.mark.parametrize("deed", ["kill", "roll", "resize"])
def test_row_e1_without_files_the_other_workers_go_on(supervisor: Supervisor, deed: str) -> None:
    wait_until(lambda: settled(supervisor, 2))
    one, other = supervisor.pids
    with no_more_files():
        if deed == "kill":
            os.kill(one, signal.SIGKILL)
            wait_until(lambda: supervisor.step() and any(child.failures > 1 for child in supervisor._children))
        elif deed == "roll":
            supervisor.roll()
        else:
            supervisor.resize(3)
        for _ in range(20):
            assert supervisor.step()
        assert supervisor.pids == ([other] if deed == "kill" else [one, other])
    wait_until(lambda: settled(supervisor, 3 if deed == "resize" else 2))
    assert deed != "roll" or {one, other}.isdisjoint(supervisor.pids)


@pytest.mark.processes
def test_row_e1_a_program_that_is_gone_for_a_moment_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    program = tmp_path / "python"
    supervisor._command[0] = str(program)
    for _ in range(5):
        assert supervisor.step()
    assert supervisor.pids == []
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    wait_until(lambda: settled(supervisor, 2))


@pytest.mark.processes
def test_row_e1_no_directory_for_temporary_files_is_needed(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    wait_until(lambda: settled(supervisor, 2))


def test_row_e1_room_for_what_workers_note_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping of a file that the disk has no room for would end the process by SIGBUS."""
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            _ = Child().slots
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("closing", [False, True])
def test_row_e1_the_agent_answers_again_when_files_can_be_opened_again(closing: bool) -> None:
    listening = listen("127.0.0.1:0", "--agent")
    where = listening.getsockname()
    agent = Agent(listening, lambda: "up")
    with socket.socket() as one, socket.socket() as other:
        with no_more_files():
            one.settimeout(0.5)
            one.connect(where)
            with suppress(TimeoutError):
                one.recv(100)  # it is answered if the agent waited for it already, with a file that was open
            other.connect(where)
            if closing:
                agent.close()
        other.settimeout(30)
        assert closing or other.recv(100) == b"up\n"
    if not closing:
        agent.close()
    wait_until(lambda: all(one.name != "flowkit-agent" for one in threading.enumerate()))


@pytest.mark.parametrize("deed", ["nobody listens", "no more files"])
def test_row_e1_a_sign_of_life_that_does_not_arrive_ends_nothing(
    deed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with no_more_files() if deed == "no more files" else nullcontext():
        ServiceManager().step(True)
