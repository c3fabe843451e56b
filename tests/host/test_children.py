"""Processes that handlers start: they end no service, and keep nothing of their worker."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings
from tests.services import free_port
from tests.support import ROOT
from tests.support.children_app import app, calls, orders
from tests.support.shop import Base, Order, effects
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
SHORT = ("fork", "forkserver", "spawn", "subprocess", "system", "come back", "publish", "")
AWAITED = ("in a coroutine", "in its work")
FORKED = ("fork and sleep",)
EXECUTED = ("fork and exec", "leave open", "spawn and leave")


class Nursery:
    """The app on a database, a supervisor with one worker, and the processes that its handlers started."""

    def __init__(self, url: str, broker: str, folder: Path) -> None:
        store = open_store(Settings(database_url=url), check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self._runs = folder / "runs"
        self._runs.touch()
        services = {"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": broker}
        self._environment = {**os.environ, **services, "CHILDREN_DIR": str(folder), "PYTHONPATH": str(ROOT)}
        self.services: Services = connect(Settings(database_url=url, broker_url=broker))
        self.store: Any = self.services.store
        app.connect(self.services)
        self.port = free_port()
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flowkit", "run", "tests.support.children_app:app"]
        command += ["--http", f"127.0.0.1:{self.port}", "--admin", "none", *options]
        started = subprocess.Popen(command, env=self._environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self._started.append(started)
        return started

    def publish(self, *deeds: str) -> None:
        app.publish_many(orders, [Order(name=deed or "none", deed=deed) for deed in deeds])

    def runs(self) -> dict[str, tuple[int, int]]:
        """order -> the worker that ran it, and the process that goes on."""
        lines = [line.rsplit(" ", 2) for line in self._runs.read_text().splitlines()]
        assert len({name for name, *_ in lines}) == len(lines), "a handler ran twice"
        return {name: (int(worker), int(child)) for name, worker, child in lines}

    def effects(self) -> dict[str, int]:
        with Session(self.store.dialect.engine) as session:
            return effects(session)

    def close(self) -> None:
        for child in filter(None, (child for _, child in self.runs().values())):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for process in self._started:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=60)
        app.close()


@pytest.fixture(params=["sqlite", pytest.param("rabbitmq", marks=[pytest.mark.postgresql, pytest.mark.rabbitmq])])
def nursery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nursery]:
    broker = "" if request.param == "sqlite" else request.getfixturevalue("rabbitmq_url")
    url = request.getfixturevalue("sqlite_url" if not broker else "postgresql_url")
    made = Nursery(url, broker, tmp_path)
    yield made
    made.close()


def test_a_process_that_a_handler_starts_ends_no_service_and_applies_nothing(nursery: Nursery) -> None:
    nursery.publish(*SHORT)
    app.publish_many(calls, [Order(name=deed, deed=deed) for deed in AWAITED])
    run = nursery.start("--until-idle")
    told = run.communicate(timeout=120)[1]
    assert run.returncode == 0, told
    assert nursery.effects() == {deed or "none": 1 for deed in SHORT + AWAITED}, told
    runs = nursery.runs()
    assert set(runs) == {deed or "none" for deed in SHORT + AWAITED}
    assert len({worker for worker, _ in runs.values()}) == 1, f"a worker was replaced\n{told}"
    for flow in ("work", "call"):
        assert f"flow children.{flow}: a process that its handler forked" in told


def test_a_child_that_outlives_its_worker_keeps_nothing_of_it(nursery: Nursery) -> None:
    run = nursery.start()
    nursery.publish(*FORKED, *EXECUTED)
    wait_until(lambda: len(nursery.runs()) == len(FORKED + EXECUTED) == sum(nursery.effects().values()))
    wait_until(lambda: answers(nursery.port))
    client = socket.create_connection(("127.0.0.1", nursery.port), 10)
    with closing(client):
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        [worker] = nursery.store.ledger.workers()
        late = Order(name="late", deed="fork and sleep")
        app.publish(orders, late)
        wait_until(lambda: "late" in nursery.runs())
        for name, (_, child) in nursery.runs().items():
            wait_until(partial(keeps_nothing, child, worker.pid, name in EXECUTED))
        for pid in (run.pid, worker.pid):
            os.kill(pid, signal.SIGKILL)
        client.settimeout(60)
        while client.recv(4096):
            pass  # the rest of the answer, and then its end: the client hears at once that the worker is dead
    wait_until(lambda: nursery.store.dialect.gone(worker.id))
    wait_until(lambda: is_free(nursery.port))


def keeps_nothing(child: int, worker: int, executed: bool) -> bool:
    kept = opened(child) & opened(worker)
    return not (kept if executed else {one for one in kept if counts(one, worker)})


def is_free(port: int) -> bool:
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            again.bind(("127.0.0.1", port))
            again.listen()
            return True
    return False


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except OSError:
        return False
    return True


def opened(pid: int) -> set[str]:
    """What a process has open, without its standard streams."""
    folder = Path(f"/proc/{pid}/fd")
    named: dict[str, str] = {}
    for one in folder.iterdir():
        with suppress(FileNotFoundError):
            named[one.name] = os.readlink(one)
    streams = {named.get(number) for number in "012"}
    return {path for path in named.values() if path not in streams and "[event" not in path and path != os.devnull}


def counts(path: str, pid: int) -> bool:
    """Whether a forked child must not have this open: a connection, or a worker's lock. The pipes and pairs of sockets
    by which event loops wake themselves up reach nobody."""
    tables = "".join(Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6"))
    connected = path.startswith("socket:") and f" {path[8:-1]} " in tables
    return connected or "-workers/" in path
