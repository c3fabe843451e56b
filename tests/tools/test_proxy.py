"""The proxy fails as it says."""

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.services.proxy import Proxy
from tests.support.waiting import wait_until

SECONDS = 5.0


class Echo(socketserver.ThreadingTCPServer):
    """Answers with what it gets, and remembers it."""

    def __init__(self) -> None:
        self.received = b""
        super().__init__(("127.0.0.1", 0), EchoHandler)


class EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Echo)
        try:
            while data := self.request.recv(65536):
                self.server.received += data
                self.request.sendall(data)
        except OSError:
            """The proxy has cut the connection."""


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo.server_address[1]) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=SECONDS)


def ask(client: socket.socket, data: bytes) -> bytes:
    """Send, and return as many bytes of the answer; fewer if the connection ends."""
    answer = b""
    try:
        client.sendall(data)
        while len(answer) < len(data) and (more := client.recv(65536)):
            answer += more
    except ConnectionError:
        """Cut: with a reset where bytes were under way."""
    return answer


def test_forwards_both_ways(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"one") == b"one"
        assert ask(other, b"other" * 100_000) == b"other" * 100_000
    assert proxy.cuts == 0


def test_passes_on_the_end_of_a_stream(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"last"
        assert client.recv(100) == b""


def test_cuts_all_connections_and_takes_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        ask(one, b"one")
        ask(other, b"other")
        proxy.cut()
        assert ask(one, b"more") == b""
        assert ask(other, b"more") == b""
    assert proxy.cuts == 2
    with connect(proxy) as client:
        assert ask(client, b"again") == b"again"


def test_refuses_new_connections_only(proxy: Proxy) -> None:
    with connect(proxy) as client:
        ask(client, b"before")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(client, b"open") == b"open"
        proxy.accept()
        with connect(proxy) as other:
            assert ask(other, b"in again") == b"in again"


def test_holds_everything_back_in_a_blackhole(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as client:
        ask(client, b"before ")
        proxy.blackhole()
        client.sendall(b"held")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert echo.received == b"before "
        proxy.forward()
        client.settimeout(SECONDS)
        assert client.recv(100) == b"held"


def test_cuts_out_of_a_blackhole(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as client:
        ask(client, b"before")
        proxy.blackhole()
        client.sendall(b"lost")
        proxy.cut()
        assert client.recv(100) == b""
    proxy.forward()
    assert echo.received == b"before"


def test_hides_the_death_of_a_client_in_a_blackhole() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy("127.0.0.1", listener.getsockname()[1]) as proxy:
        client = connect(proxy)
        server, _ = listener.accept()
        with server:
            proxy.blackhole()
            client.close()
            server.settimeout(0.1)
            with pytest.raises(TimeoutError):
                server.recv(100)
            proxy.forward()
            server.settimeout(SECONDS)
            assert server.recv(100) == b""


@pytest.mark.parametrize("forward", [True, False])
def test_cuts_instead_of_answering(proxy: Proxy, echo: Echo, forward: bool) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        ask(client, b"BEGIN ")
        ask(other, b"")
        proxy.cut_when(b"COMMIT", forward)
        assert ask(client, b"COMMIT now") == b""
        assert echo.received == (b"BEGIN COMMIT now" if forward else b"BEGIN ")
        assert ask(other, b" COMMIT") == b" COMMIT"  # once, and that connection alone
    assert proxy.cuts == 1


def test_cuts_when_the_server_has_answered(proxy: Proxy, echo: Echo) -> None:
    proxy.cut_when(b"PUBLISH", forward=True, answer=b"CONFIRM")
    with connect(proxy) as client:
        client.sendall(b"PUBLISH ")
        wait_until(lambda: echo.received == b"PUBLISH ")
        assert proxy.cuts == 0
        client.sendall(b"CON")
        wait_until(lambda: echo.received == b"PUBLISH CON")
        assert ask(client, b"FIRM") == b""
    assert echo.received == b"PUBLISH CONFIRM"
    assert proxy.cuts == 1


def test_recognizes_a_pattern_in_pieces(proxy: Proxy, echo: Echo) -> None:
    proxy.cut_when(b"COMMIT", forward=False)
    with connect(proxy) as client:
        assert ask(client, b"COM") == b"COM"
        assert ask(client, b"MIT") == b""
    assert echo.received == b"COM"
    assert proxy.cuts == 1


def test_a_server_that_is_gone_ends_the_connection() -> None:
    with Echo() as server:
        port = server.server_address[1]
    with Proxy("127.0.0.1", port) as proxy, connect(proxy) as client:
        assert ask(client, b"anyone?") == b""


def test_close_leaves_no_thread(echo: Echo) -> None:
    before = threading.active_count()
    with Proxy("127.0.0.1", echo.server_address[1]) as proxy, connect(proxy) as client:
        ask(client, b"x")
        proxy.blackhole()
    wait_until(lambda: threading.active_count() <= before)  # the echo server's own thread sees the end a moment later
