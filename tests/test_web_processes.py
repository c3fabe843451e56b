"""Instances behind a real balancer: one that ends, or dies, costs no client a request, and nothing accepted is lost."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json, to_json
from sqlalchemy.orm import Session

from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.web import balancer
from tests.services import free_port
from tests.services.balancer import Balancer
from tests.shop import Base, effects
from tests.web_app import app

pytestmark = [pytest.mark.migrated, pytest.mark.processes, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent
SECONDS = 60.0


class Instances:
    """Instances of the app on one database."""

    def __init__(self, url: str) -> None:
        self.app = "tests.web_app:app"
        self.environment = {**os.environ, "FLOWKIT_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
        self.store: Any = open_store(Settings(database_url=url), check=False)
        self.store.schema.upgrade()
        Base.metadata.create_all(self.store.dialect.engine)
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *options: str) -> int:
        """Start one; returns its port. It may not be ready yet."""
        port = free_port()
        command = [*self.command, "--http", f"127.0.0.1:{port}", "--admin", "none", *options]
        self.running[port] = subprocess.Popen(command, env=self.environment, cwd=ROOT, start_new_session=True)
        return port

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "flowkit", "run", self.app]

    def ready(self, port: int) -> bool:
        try:
            return request(port, "GET", "/readyz")[0] == 200
        except OSError:
            return False

    def kill(self, port: int) -> None:
        """End one as if its host died: the supervisor and its workers at once, by their session."""
        process = self.running.pop(port)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, workers)):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    def end(self, port: int) -> int:
        """End one in order; returns its exit status."""
        process = self.running.pop(port)
        process.terminate()
        return process.wait(SECONDS)

    def workers(self) -> set[str]:
        """The workers that are ready, by the store."""
        return {one.id for one in self.store.ledger.workers() if one.state == "ready"}

    def applied(self) -> dict[str, int]:
        with Session(self.store.dialect.engine) as session:
            return effects(session)

    def check(self, clients: "Clients") -> None:
        """Whatever was accepted takes effect once, and nothing else does."""
        until(lambda: self.store.ledger.unfinished(list(app.flows)) == 0)
        applied = self.applied()
        assert not set(clients.accepted) - set(applied), "what was accepted was lost"
        assert not {name: count for name, count in applied.items() if count > 1}, "something took effect twice"
        assert not set(applied) - set(clients.sent)
        for flow, balance in self.store.ledger.balances().items():
            assert balance.balanced, f"{flow}: {balance}"

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(SECONDS)
        self.store.close()


class Clients:
    """Clients that post one order after the other, each on a connection that it keeps."""

    def __init__(self, port: int, many: int = 8) -> None:
        self._port = port
        self._stopping = threading.Event()
        self.sent: list[str] = []
        self.accepted: list[str] = []
        self.failed: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._live, args=(number,)) for number in range(many)]
        for thread in self._threads:
            thread.start()

    def go_on(self, many: int = 200) -> None:
        """Return when so many more were accepted."""
        reached = len(self.accepted) + many
        until(lambda: len(self.accepted) >= reached)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _live(self, client: int) -> None:
        number = 0
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)) as connection:
            while not self._stopping.is_set():
                name = f"{client}-{(number := number + 1)}"
                self.sent.append(name)
                try:
                    connection.request("POST", "/orders", to_json({"name": name}), {"content-type": "application/json"})
                    answer = connection.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.failed[repr(error)] += 1
                    connection.close()
                    continue
                if answer.status == 202:
                    self.accepted.append(name)
                else:
                    self.failed[f"{answer.status} {content[:200]!r}"] += 1


def request(port: int, method: str, path: str, content: bytes = b"") -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request(method, path, content, {"content-type": "application/json"} if content else {})
        answer = connection.getresponse()
        content = answer.read()
    return answer.status, from_json(content) if "json" in answer.headers.get("content-type", "") else content


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def instances(database_url: str) -> Iterator[Instances]:
    made = Instances(database_url)
    yield made
    made.close()


@pytest.fixture
def lb(database_url: str) -> Iterator[tuple[str, Balancer]]:
    """HAProxy before instances on SQLite, nginx before those on PostgreSQL: a balancer sees no database, only HTTP."""
    kind = "haproxy" if database_url.startswith("sqlite") else "nginx"
    made = Balancer(kind)
    yield kind, made
    made.close()


def before(lb: tuple[str, Balancer], ports: list[int]) -> Balancer:
    """A balancer that runs before these instances, with the configuration that FlowKit prints."""
    kind, made = lb
    found = [balancer.Instance("127.0.0.1", port) for port in ports]
    listen = f"127.0.0.1:{made.port}"
    configuration = balancer.haproxy(found, listen, None) if kind == "haproxy" else balancer.nginx(found, listen)
    assert made.configure(configuration) == ""
    made.start()
    return made


def test_an_instance_that_dies_costs_no_client_a_request(instances: Instances, lb: tuple[str, Balancer]) -> None:
    ports = [instances.start() for _ in range(3)]
    until(lambda: all(map(instances.ready, ports)))
    clients = Clients(before(lb, ports).port)
    for port in ports[:2]:
        clients.go_on()
        instances.kill(port)
    clients.go_on()
    clients.stop()
    assert not clients.failed
    instances.check(clients)


def test_an_instance_that_ends_in_order_costs_no_client_a_request(
    instances: Instances, lb: tuple[str, Balancer]
) -> None:
    ports = [instances.start("--drain", "1500ms") for _ in range(2)]
    until(lambda: all(map(instances.ready, ports)))
    clients = Clients(before(lb, ports).port)
    clients.go_on()
    assert instances.end(ports[0]) == 0
    clients.go_on()
    clients.stop()
    assert not clients.failed
    instances.check(clients)


def test_a_roll_replaces_the_workers_and_costs_no_client_a_request(
    instances: Instances, lb: tuple[str, Balancer]
) -> None:
    port = instances.start("--workers", "2")
    until(lambda: len(instances.workers()) == 2)
    old = instances.workers()
    clients = Clients(before(lb, [port]).port)
    clients.go_on()
    instances.running[port].send_signal(signal.SIGHUP)
    until(lambda: len(instances.workers() - old) == 2 and not instances.workers() & old)
    clients.go_on()
    clients.stop()
    assert not clients.failed
    assert len(instances.workers()) == 2
    instances.check(clients)


def test_a_roll_to_code_that_does_not_start_leaves_the_old_workers(
    instances: Instances, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "web_app.py"
    shutil.copy(ROOT / "tests" / "web_app.py", code)
    instances.app = str(code)
    port = instances.start()
    until(lambda: instances.ready(port))
    code.write_text(code.read_text() + "\nthis is no Python\n")
    instances.running[port].send_signal(signal.SIGHUP)
    said: list[str] = []

    def told() -> bool:
        said.append(capfd.readouterr().err)
        return "a new worker ended at once, so no more are replaced" in "".join(said)

    until(told)
    assert request(port, "POST", "/orders", b'{"name": "a"}')[0] == 202
    assert instances.end(port) == 0


def test_the_agent_says_what_an_instance_can_take(instances: Instances) -> None:
    agent = free_port()
    port = instances.start("--workers", "2", "--agent", f"127.0.0.1:{agent}", "--drain", "5s")
    until(lambda: asked(agent) == "up ready 100%")
    instances.running[port].terminate()
    until(lambda: asked(agent) == "drain")
    assert request(port, "POST", "/orders", b'{"name": "a"}')[0] == 202
    assert request(port, "GET", "/readyz")[0] == 503


def test_systemd_is_told_of_a_services_life(
    instances: Instances, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.settimeout(SECONDS)
        monkeypatch.setitem(instances.environment, "NOTIFY_SOCKET", address)
        monkeypatch.setitem(instances.environment, "WATCHDOG_USEC", "200000")
        port = instances.start("--workers", "2", "--drain", "0s")
        said = [told.recv(100)]
        while b"READY=1" not in said:
            said.append(told.recv(100))
        assert instances.ready(port)
        while said.count(b"WATCHDOG=1") < 3:
            said.append(told.recv(100))
        assert instances.end(port) == 0
        while b"STOPPING=1" not in said:
            said.append(told.recv(100))
    assert said.count(b"READY=1") == 1


def asked(agent: int) -> str:
    """What an agent answers."""
    try:
        with socket.create_connection(("127.0.0.1", agent), SECONDS) as asking:
            return asking.makefile().readline().strip()
    except ConnectionRefusedError:
        return ""


def test_a_fleet_follows_what_it_is_directed_to(instances: Instances) -> None:
    ports = [instances.start(), instances.start("--workers", "2")]
    until(lambda: len(instances.workers()) == 3)
    instances.store.directions.set("workers", ["front"], 3)
    until(lambda: len(instances.workers()) == 6)
    instances.store.directions.set("workers", ["front"], 1)
    until(lambda: len(instances.workers()) == 2)
    old = instances.workers()
    instances.store.directions.set("lanes", ["front.accept"], 4)
    until(lambda: len(instances.workers()) == 2 and not instances.workers() & old)
    instances.store.directions.set("lanes", ["front.accept"], None)
    instances.store.directions.set("workers", ["front"], None)
    until(lambda: len(instances.workers()) == 3 and all(map(instances.ready, ports)))
    assert request(ports[0], "POST", "/orders", b'{"name": "a"}')[0] == 202
    until(lambda: instances.applied() == {"a": 1})


def test_any_instance_answers_for_any_message(instances: Instances) -> None:
    first, second = instances.start(), instances.start("--workers", "2")
    until(lambda: instances.ready(first) and instances.ready(second))
    for port, other in ((first, second), (second, first)):
        status, answer = request(port, "POST", "/orders", b'{"name": "a"}')
        assert status == 202
        until(partial(applied, other, answer["status"]))


def applied(port: int, path: str) -> bool:
    return bool(request(port, "GET", path)[1]["state"] == "applied")


def test_the_service_file_is_one(tmp_path: Path) -> None:
    """By systemd itself, where it is installed; the program that the file names is not there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "flowkit.service"
    text = (ROOT / "examples" / "deploy" / "flowkit.service").read_text()
    unit.write_text(text.replace("/srv/shop/.venv/bin/flowkit", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if str(unit) in line]) == (0, [])


@pytest.mark.parametrize("shared", [True, False], ids=["one store", "a store each"])
def test_a_request_that_is_sent_again_to_another_cluster_counts_once_only_with_one_store(
    sqlite_url: str, tmp_path: Path, shared: bool
) -> None:
    urls = [sqlite_url, sqlite_url if shared else f"sqlite:///{tmp_path}/other.db"]
    clusters = [Instances(url) for url in urls]
    try:
        ports = [cluster.start() for cluster in clusters]
        until(lambda: all(cluster.ready(port) for cluster, port in zip(clusters, ports, strict=True)))
        for port in ports:
            headers = {"content-type": "application/json", "idempotency-key": "order-1"}
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
                connection.request("POST", "/orders", b'{"name": "a"}', headers)
                assert connection.getresponse().status == 202
        for cluster in clusters:
            until(lambda: cluster.store.ledger.unfinished(["front.accept"]) == 0)  # noqa: B023
        found = [cluster.applied() for cluster in clusters]
    finally:
        for cluster in clusters:
            cluster.close()
    assert found == [{"a": 1}, {"a": 1}], "with one store both look at the same effect, else there are two"
    assert (urls[0] == urls[1]) is shared


def test_clients_that_send_slowly_keep_nobody_else_waiting(instances: Instances) -> None:
    """Slow-loris: connections with half a request each, and no more."""
    port = instances.start()
    until(lambda: instances.ready(port))
    with contextlib.ExitStack() as slow:
        for number in range(300):
            one = slow.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS))
            head = b"POST /orders HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
            one.sendall(head if number % 2 else head + b'Content-Length: 100\r\n\r\n{"name": ')
        clients = Clients(port, 4)
        clients.go_on(100)
        clients.stop()
    assert not clients.failed
    instances.check(clients)
