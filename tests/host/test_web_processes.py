"""Instances behind a real balancer: one that ends, or dies, costs no client a request, and nothing accepted is lost."""

import contextlib
import http.client
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.services import free_port
from tests.services.balancer import Balancer
from tests.support import ROOT
from tests.support.instances import SECONDS, Clients, Instances, before, request
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.migrated, pytest.mark.processes, pytest.mark.timeout(300)]


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


def test_an_instance_that_dies_costs_no_client_a_request(instances: Instances, lb: tuple[str, Balancer]) -> None:
    ports = [instances.start() for _ in range(3)]
    wait_until(lambda: all(map(instances.ready, ports)))
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
    wait_until(lambda: all(map(instances.ready, ports)))
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
    wait_until(lambda: len(instances.workers()) == 2)
    old = instances.workers()
    clients = Clients(before(lb, [port]).port)
    clients.go_on()
    instances.running[port].send_signal(signal.SIGHUP)
    wait_until(lambda: len(instances.workers() - old) == 2 and not instances.workers() & old)
    clients.go_on()
    clients.stop()
    assert not clients.failed
    assert len(instances.workers()) == 2
    instances.check(clients)


def test_a_roll_to_code_that_does_not_start_leaves_the_old_workers(
    instances: Instances, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "web_app.py"
    shutil.copy(ROOT / "tests" / "support" / "web_app.py", code)
    instances.app = str(code)
    port = instances.start()
    wait_until(lambda: instances.ready(port))
    code.write_text(code.read_text() + "\nthis is no Python\n")
    instances.running[port].send_signal(signal.SIGHUP)
    said: list[str] = []

    def told() -> bool:
        said.append(capfd.readouterr().err)
        return "a new worker ended at once, so no more are replaced" in "".join(said)

    wait_until(told)
    assert request(port, "POST", "/orders", b'{"name": "a"}')[0] == 202
    assert instances.end(port) == 0


def test_the_agent_says_what_an_instance_can_take(instances: Instances) -> None:
    agent = free_port()
    port = instances.start("--workers", "2", "--agent", f"127.0.0.1:{agent}", "--drain", "5s")
    wait_until(lambda: asked(agent) == "up ready 100%")
    instances.running[port].terminate()
    wait_until(lambda: asked(agent) == "drain")
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
    wait_until(lambda: len(instances.workers()) == 3)
    instances.store.directions.set("workers", ["front"], 3)
    wait_until(lambda: len(instances.workers()) == 6)
    instances.store.directions.set("workers", ["front"], 1)
    wait_until(lambda: len(instances.workers()) == 2)
    old = instances.workers()
    instances.store.directions.set("lanes", ["front.accept"], 4)
    wait_until(lambda: len(instances.workers()) == 2 and not instances.workers() & old)
    instances.store.directions.set("lanes", ["front.accept"], None)
    instances.store.directions.set("workers", ["front"], None)
    wait_until(lambda: len(instances.workers()) == 3 and all(map(instances.ready, ports)))
    assert request(ports[0], "POST", "/orders", b'{"name": "a"}')[0] == 202
    wait_until(lambda: instances.applied() == {"a": 1})


def test_any_instance_answers_for_any_message(instances: Instances) -> None:
    first, second = instances.start(), instances.start("--workers", "2")
    wait_until(lambda: instances.ready(first) and instances.ready(second))
    for port, other in ((first, second), (second, first)):
        status, answer = request(port, "POST", "/orders", b'{"name": "a"}')
        assert status == 202
        wait_until(partial(applied, other, answer["status"]))


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
        wait_until(lambda: all(cluster.ready(port) for cluster, port in zip(clusters, ports, strict=True)))
        for port in ports:
            headers = {"content-type": "application/json", "idempotency-key": "order-1"}
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
                connection.request("POST", "/orders", b'{"name": "a"}', headers)
                assert connection.getresponse().status == 202
        for cluster in clusters:
            wait_until(lambda: cluster.store.ledger.unfinished(["front.accept"]) == 0)  # noqa: B023
        found = [cluster.applied() for cluster in clusters]
    finally:
        for cluster in clusters:
            cluster.close()
    assert found == [{"a": 1}, {"a": 1}], "with one store both look at the same effect, else there are two"
    assert (urls[0] == urls[1]) is shared


def test_clients_that_send_slowly_keep_nobody_else_waiting(instances: Instances) -> None:
    """Slow-loris: connections with half a request each, and no more."""
    port = instances.start()
    wait_until(lambda: instances.ready(port))
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
