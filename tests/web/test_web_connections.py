"""Connections of hostile clients: what they send is bounded, and an instance answers others."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx2
import pytest
from pydantic_core import from_json

from flowkit import App, web
from flowkit.web import connection
from tests.services import free_port
from tests.support import ROOT
from tests.support.waiting import wait_until
from tests.support.web_site import SECONDS, Site

HEAD = b"POST /notes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def shop() -> App:
    app = App("shop")

    @app.flow(web.post("/notes"))
    def note(note: dict[str, str]) -> None: ...

    @app.flow(web.post("/blobs", reply=True))
    def blob(blob: bytes) -> int:
        return len(blob)

    @app.flow(web.get("/large", reply="10s"))
    def large() -> str:
        return "x" * 1_000_000

    return app


class Client:
    """A client that writes what it likes."""

    def __init__(self, port: int, *parts: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(b"".join(parts))

    def answer(self) -> tuple[int, bytes]:
        """The status and the content of the next answer. The status of a connection that is closed is 0."""
        try:
            status = int((self.file.readline() or b"x 0").split()[1])
            length = 0
            while line := self.file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            return status, self.file.read(length)
        except ConnectionError:
            return 0, b""

    def stream(self, part: bytes, most: int) -> int:
        """Send this again and again, until the connection is closed. Returns how many bytes were sent."""
        sent = 0
        with suppress(ConnectionError):
            while sent < most:
                self.socket.sendall(part)
                sent += len(part)
        return sent

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def asked(site: Site, *parts: bytes) -> tuple[int, bytes]:
    with closing(Client(site.port, *parts)) as client:
        return client.answer()


def open_at(site: Site) -> int:
    return len(site.server._server._server.server_state.connections)


# ------------------------------------------------------------ headers and trailers


@pytest.mark.parametrize("part", [b"x", b"x: y\r\n", b"x" * 100 + b": " + b"y" * 1000 + b"\r\n", b"x: " + b"y" * 9999])
def test_headers_are_bounded(site: Site, part: bytes) -> None:
    with closing(Client(site.port, b"GET /livez HTTP/1.1\r\nhost: x\r\n")) as client:
        assert client.stream(part * (65536 // len(part)), 2**25) < 2**24, "it is not read to its end"
    many = b"".join(b"h%d: y\r\n" % one for one in range(8000))
    status, told = asked(site, b"GET /livez HTTP/1.1\r\nhost: x\r\n", many, b"\r\n")
    assert status == 431
    assert from_json(told)["status"] == 431
    assert asked(site, b"GET /livez?", b"x" * 40_000, b" HTTP/1.1\r\nhost: x\r\n\r\n")[0] == 431
    assert asked(site, b"GET /livez?", b"x" * 20_000, b" HTTP/1.1\r\nhost: x\r\n\r\n")[0] == 200


def test_a_trailer_is_no_header_of_this_request_or_the_next(site: Site) -> None:
    chunked = (
        HEAD
        + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nidempotency-key: evil\r\nexpect: 100-continue\r\n\r\n"
    )
    with closing(Client(site.port, chunked)) as client:
        for _ in range(2):
            status, told = client.answer()
            assert status == 202
            assert from_json(told)["id"] != "evil"
            client.socket.sendall(HEAD + b"content-length: 2\r\n\r\n{}")


@pytest.mark.parametrize("begin", [b"2\r\n{}\r\n0\r\n", b"2;"], ids=["trailers", "extensions"])
def test_what_stands_between_contents_is_bounded(site: Site, begin: bytes) -> None:
    with closing(Client(site.port, HEAD, b"transfer-encoding: chunked\r\n\r\n", begin)) as client:
        part = b"x: y\r\n" * 10_000 if begin.endswith(b"\n") else b"x=y;" * 15_000
        assert client.stream(part, 2**25) < 2**24, "it is not read to its end"


# ------------------------------------------------------------ upgrades


@pytest.mark.parametrize("to", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_made_and_the_request_is_read_in_full(site: Site, to: bytes) -> None:
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABk\r\nsec-websocket-version: 13\r\n"
    one = b"POST /blobs HTTP/1.1\r\nhost: x\r\n" + upgrade + b"upgrade: " + to + b"\r\ncontent-length: 5\r\n\r\n"
    with closing(Client(site.port, one)) as client:
        client.socket.sendall(b"hello" + one + b"again")
        assert [client.answer() for _ in range(2)] == [(200, b"5"), (200, b"5")]
        client.socket.sendall(
            one.replace(b"content-length: 5", b"transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"
        )
        assert client.answer() == (200, b"3")
    assert asked(site, b"GET /livez HTTP/1.1\r\nhost: x\r\n" + upgrade + b"upgrade: " + to + b"\r\n\r\n")[0] == 200


def test_there_is_no_proxy(site: Site) -> None:
    assert asked(site, b"CONNECT localhost:22 HTTP/1.1\r\nhost: x\r\n\r\n")[0] == 501


# ------------------------------------------------------------ answers of the right request


def test_what_follows_a_request_does_not_change_its_answer(site: Site) -> None:
    good = b"POST /blobs HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
    assert asked(site, good, b"\x00garbage\r\n\r\n") == (200, b"5")
    assert asked(site, good, b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 10_000) == (200, b"5")
    assert asked(site, b"\x00garbage\r\n\r\n")[0] == 400
    assert asked(site, HEAD, b"transfer-encoding: chunked\r\n\r\nx\r\n")[0] == 400


# ------------------------------------------------------------ time


def test_headers_that_come_too_slowly_are_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    assert asked(site)[0] == 0, "one that says nothing is closed"
    assert asked(site, HEAD)[0] == 408
    with closing(Client(site.port, HEAD, b"content-length: 2\r\n\r\n{}")) as client:
        assert client.answer()[0] == 202
        client.socket.sendall(b"\r\n")  # is the beginning of nothing
        assert client.answer()[0] == 408
    with closing(Client(site.port, HEAD, b"content-length: 2\r\n\r\n{}")) as client:
        assert client.answer()[0] == 202
        client.socket.sendall(HEAD)
        assert client.answer()[0] == 408


def test_content_that_nobody_reads_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MESSAGE_SECONDS", 0.2)
    with closing(Client(site.port, b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")) as client:
        assert client.answer()[0] == 200
        assert client.answer()[0] == 0


def test_answers_that_nobody_takes_are_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
    with closing(Client(site.port, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 20)):
        wait_until(lambda: open_at(site) == 1)
        wait_until(lambda: not open_at(site))


def test_requests_that_wait_for_answers_are_bounded(site: Site) -> None:
    ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    with closing(Client(site.port, ask * 3000)) as client:
        answers = 0
        while client.answer()[0] == 200:
            answers += 1
        assert 100 <= answers < 200


# ------------------------------------------------------------ many


def test_of_too_many_connections_the_idlest_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS", 8)
    with ExitStack() as opened:
        busy = [opened.enter_context(closing(Client(site.port, HEAD, b"content-length: 2\r\n\r\n{"))) for _ in range(4)]
        half = [opened.enter_context(closing(Client(site.port, HEAD))) for _ in range(20)]
        assert asked(site, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")[0] == 200
        assert half[0].answer()[0] == 0
        assert open_at(site) <= 8
        for one in busy:
            one.socket.sendall(b"}")
            assert one.answer()[0] == 202


def test_where_all_connections_are_busy_others_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS", 4)
    site = Site(f"sqlite:///{tmp_path}/flowkit.db", shop())
    site.client.close()
    wait_until(lambda: not open_at(site))
    with ExitStack() as opened:
        opened.callback(site.close)
        for _ in range(4):
            opened.enter_context(closing(Client(site.port, HEAD, b"content-length: 2\r\n\r\n{")))
        wait_until(lambda: open_at(site) == 4)
        status, told = asked(site, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (status, from_json(told)["status"]) == (503, 503)


@pytest.mark.processes
def test_half_open_requests_make_no_worker_deaf(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "FLOWKIT_DATABASE_URL": f"sqlite:///{tmp_path}/flowkit.db", "PYTHONPATH": str(ROOT)}
    few = ["prlimit", f"--nofile={FILES}", sys.executable, "-m", "flowkit", "run", "tests.web.test_web_connections:app"]
    process = subprocess.Popen([*few, "--workers", "1", "--http", f"127.0.0.1:{port}"], env=environment, cwd=ROOT)
    try:
        wait_until(lambda: _lives(port))
        with ExitStack() as opened:
            for _ in range(FILES):
                opened.enter_context(closing(Client(port, HEAD)))
            assert _lives(port)
    finally:
        process.terminate()
        process.wait(SECONDS)


FILES = 120


def _lives(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/livez", timeout=3).status_code == 200
    except httpx2.HTTPError:
        return False


app = shop()
