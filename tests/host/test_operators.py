"""What operators ask an instance for is answered at a listener of its own, and at no balancer."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.web import balancer
from tests.services import free_port
from tests.services.balancer import Balancer
from tests.support import ROOT
from tests.support.shop import Base
from tests.support.waiting import wait_until
from tests.support.web_site import Site, shop

OPERATORS = ("/metrics", "/scale", "/flowkit/openapi.json")
ADMIN_PORTS = 1000
SECONDS = 60.0


@pytest.fixture
def site(sqlite_url: str) -> Iterator[Site]:
    made = Site(sqlite_url, shop())
    yield made
    made.close()


def test_clients_are_not_told_what_operators_are(site: Site) -> None:
    for path in OPERATORS:
        assert site.client.get(path).status_code == 404
        assert site.admin.get(path).status_code == 200
    assert site.client.get("/readyz?verbose").text == site.client.get("/readyz").text == "ok\n"
    assert site.admin.get("/readyz?verbose").json()["transport"] == "takes messages"
    assert site.admin.get("/livez").status_code == 200
    assert site.admin.post("/orders", json={"name": "a"}).status_code == 404
    assert site.admin.get("/flowkit/messages/one").status_code == 404
    site.server.leave(60, 60)
    refused = site.client.get("/readyz?verbose")
    assert (refused.status_code, "store" in refused.json()) == (503, False)


class Old(BaseHTTPRequestHandler):
    """An instance of an older version: it answers everything where clients ask."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *arguments: object) -> None: ...


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_balancer_hands_on_no_question_of_operators(kind: str) -> None:
    old = ThreadingHTTPServer(("127.0.0.1", 0), Old)
    serving = threading.Thread(target=old.serve_forever)
    serving.start()
    try:
        with closing(Balancer(kind)) as made:
            found, listen = [balancer.Instance("127.0.0.1", old.server_port)], f"127.0.0.1:{made.port}"
            write = balancer.nginx(found, listen) if kind == "nginx" else balancer.haproxy(found, listen, None)
            assert made.configure(write) == ""
            made.start()
            with httpx2.Client(base_url=f"http://127.0.0.1:{made.port}", timeout=SECONDS) as client:
                for path in (
                    *OPERATORS,
                    "/%6detrics",
                    "/metrics?a=b",
                    "/readyz?verbose",
                    "/readyz?",
                    "/readyz%3fverbose",
                ):
                    answered = client.get(path).status_code
                    assert answered == (200 if path in ("/readyz?", "/readyz%3fverbose") else 404), path
                for path in ("/readyz", "/livez", "/orders", "/metricsx", "/flowkit/messages/one?token=two"):
                    assert client.get(path).status_code == 200, path
    finally:
        old.shutdown()
        serving.join(SECONDS)
        old.server_close()


def free_ports() -> tuple[int, int]:
    """A port for clients, and the one that operators get by default."""
    while True:
        port = free_port()
        with suppress(OSError, OverflowError), socket.socket() as admin:
            admin.bind(("127.0.0.1", port + ADMIN_PORTS))
            return port, port + ADMIN_PORTS


@contextmanager
def instance(url: str, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    store = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    store.close()
    command = [
        sys.executable,
        "-m",
        "flowkit",
        "run",
        "tests.support.web_app:app",
        "--http",
        f"0.0.0.0:{port}",
        "--drain",
        "0s",
    ]
    process = subprocess.Popen(
        [*command, *options], env={**os.environ, "FLOWKIT_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)


def answers(host: str, port: int, path: str) -> int:
    """The status, or 0 where nobody listens."""
    try:
        return httpx2.get(f"http://{host}:{port}{path}", timeout=SECONDS).status_code
    except httpx2.ConnectError:
        return 0


@pytest.mark.processes
def test_by_default_operators_are_served_on_loopback_only(sqlite_url: str) -> None:
    port, admin = free_ports()
    with instance(sqlite_url, port, "--workers", "2"):
        wait_until(lambda: answers("127.0.0.1", port, "/readyz") == 200, SECONDS)
        assert answers("127.0.0.1", admin, "/metrics") == 200
        assert answers("127.0.0.2", admin, "/metrics") == 0, "another address of this host"
        assert answers("127.0.0.2", port, "/metrics") == 404


@pytest.mark.processes
def test_operators_are_served_where_they_are_told_or_nowhere(sqlite_url: str) -> None:
    port, admin = free_ports()
    other = free_port()
    with instance(sqlite_url, port, "--admin", f"127.0.0.2:{other}"):
        wait_until(lambda: answers("127.0.0.1", port, "/readyz") == 200, SECONDS)
        assert (answers("127.0.0.2", other, "/scale"), answers("127.0.0.1", admin, "/scale")) == (200, 0)
    with instance(sqlite_url, port, "--admin", "none"):
        wait_until(lambda: answers("127.0.0.1", port, "/readyz") == 200, SECONDS)
        assert answers("127.0.0.1", admin, "/scale") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--admin", "127.0.0.1:9080"], "--admin is served beside --http"),
        (["--http", "127.0.0.1:0", "--admin", "9080x"], "--admin 9080x: write HOST:PORT"),
        (["--http", "127.0.0.1:65000"], "--admin (by default the port of --http + 1000) 127.0.0.1:66000"),
    ],
)
@pytest.mark.processes
def test_a_listener_that_cannot_be_is_refused_by_name(sqlite_url: str, options: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flowkit", "run", "tests.support.web_app:app", *options],
        env={**os.environ, "FLOWKIT_DATABASE_URL": sqlite_url, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
