"""Attackers of an HTTP port, in a separate process with bounded CPU: python -m benchmarks.attack.attackers."""

import argparse
import math
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

HOST = "127.0.0.1"
BEGUN = "begun"
SHARE = 0.05
"""Of one core: an attacker of more could take the machine's CPU away from anything."""
CONNECTIONS = 300
MANY = 1500
RATE = 50.0
"""Whole requests a second, where an attack consists of these: more would be load like any other."""
SLOW_SECONDS = 0.5
"""Between two bytes of a slow request."""
PIECE = 64 * 1024
LARGE = 15 * 1024 * 1024
"""Less than /imports takes."""
JSON = b"content-type: application/json\r\n"


class Pace:
    """Keeps the CPU time of this process below a share of the time that passes, and its deeds below a rate."""

    def __init__(self, seconds: float) -> None:
        """`seconds` that the attack lasts."""
        self.rate = math.inf
        """Most deeds a second."""
        self.deeds = 0
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._used = time.process_time()

    @property
    def lasts(self) -> bool:
        """Whether the attack goes on."""
        return time.monotonic() < self._end

    def keep(self) -> None:
        """Wait until share and rate are kept. Blocks."""
        used = time.process_time() - self._used
        time.sleep(max(0.0, self._began + max(used / SHARE, self.deeds / self.rate) - time.monotonic()))
        self.deeds += 1


class Line:
    """One connection, which is opened again whenever it was closed."""

    def __init__(self, port: int, pace: Pace) -> None:
        self._port = port
        self._pace = pace
        self._socket: socket.socket | None = None

    def send(self, data: bytes) -> bool:
        """Send, on a new connection if need be. Whether all went out; what comes back is thrown away. Blocks."""
        self._pace.keep()
        try:
            if self._socket is None:
                self._socket = socket.create_connection((HOST, self._port), 5)
            self._socket.settimeout(5)
            self._socket.sendall(data)
            self._socket.settimeout(0)
            with suppress(BlockingIOError):
                if not self._socket.recv(PIECE):
                    raise ConnectionResetError
        except OSError:
            self.close()
            return False
        return True

    @property
    def new(self) -> bool:
        """Whether nothing was sent on this connection yet."""
        return self._socket is None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def head(path: str, length: int, more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n%s\r\n" % (path.encode(), JSON, length, more)


def slow_headers(port: int, pace: Pace) -> None:
    """Slowloris: many connections whose headers come byte by byte."""
    _slowly(port, pace, b"POST /places HTTP/1.1\r\nhost: x\r\nx-slow: ")


def slow_content(port: int, pace: Pace) -> None:
    """Many requests whose content comes byte by byte."""
    _slowly(port, pace, head("/places", 100_000))


def half_open(port: int, pace: Pace) -> None:
    """Many requests whose content does not come at all."""
    lines = [Line(port, pace) for _ in range(CONNECTIONS)]
    while pace.lasts:
        for line in lines:
            if line.new:
                line.send(head("/places", 1000))
        time.sleep(SLOW_SECONDS)


def many_connections(port: int, pace: Pace) -> None:
    """More connections than a process holds, which say nothing."""
    lines: list[socket.socket] = []
    while pace.lasts:
        pace.keep()
        with suppress(OSError):
            lines.append(socket.create_connection((HOST, port), 5))
        if len(lines) > MANY:
            lines.pop(0).close()


def large_content(port: int, pace: Pace) -> None:
    """Eight connections that send 15 MB of JSON again and again, which the route does not take in the end."""
    _large(port, pace, b'"x"]')


def large_messages(port: int, pace: Pace) -> None:
    """Eight connections that send 15 MB of JSON again and again, which the route takes and the flow works on."""
    _large(port, pace, b"123]")


def unfinished_content(port: int, pace: Pace) -> None:
    """Sixty requests of 15 MB, of which the last byte never comes."""
    lines = [Line(port, pace) for _ in range(60)]
    piece = b"1," * (PIECE // 2)
    while pace.lasts:
        for line in lines:
            if pace.lasts and line.new and line.send(head("/imports", LARGE)):
                for _ in range(LARGE // PIECE - 1):
                    if not pace.lasts or not line.send(piece):
                        break
        time.sleep(SLOW_SECONDS)


def refused_content(port: int, pace: Pace) -> None:
    """15 MB of content where a route takes one."""
    lines = [Line(port, pace) for _ in range(8)]
    while pace.lasts:
        for line in lines:
            line.send(head("/places", LARGE))
            for _ in range(16):
                line.send(b" " * PIECE)
            line.close()


def endless_headers(port: int, pace: Pace) -> None:
    """Headers without end."""
    line = Line(port, pace)
    while pace.lasts:
        if line.new:
            line.send(b"POST /places HTTP/1.1\r\nhost: x\r\n")
        line.send(b"x-more: " + b"a" * 4000 + b"\r\n")


def endless_trailers(port: int, pace: Pace) -> None:
    """Trailers without end, one of which is an idempotency key."""
    line = Line(port, pace)
    while pace.lasts:
        if line.new:
            line.send(b"POST /places HTTP/1.1\r\nhost: x\r\n" + JSON + b"transfer-encoding: chunked\r\n\r\n")
            line.send(b'd\r\n{"name": "a"}\r\n0\r\nidempotency-key: forged\r\n')
        line.send(b"x-more: " + b"a" * 4000 + b"\r\n")


def garbage(port: int, pace: Pace) -> None:
    """Pipelined requests, and garbage behind them."""
    pace.rate = RATE / 5
    line = Line(port, pace)
    content = b'{"name": "a"}'
    while pace.lasts:
        line.send((head("/places", len(content)) + content) * 5 + b"\x00\xff garbage\r\n\r\n" * 20)


def upgrades(port: int, pace: Pace) -> None:
    """Requests that ask for a WebSocket."""
    pace.rate = RATE
    lines = [Line(port, pace) for _ in range(50)]
    more = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n"
    while pace.lasts:
        for line in lines:
            line.send(head("/places", 13, more) + b'{"name": "a"}')


def questions(port: int, pace: Pace) -> None:
    """Ask the questions of operators, from many connections."""
    pace.rate = RATE
    lines = [Line(port, pace) for _ in range(24)]
    while pace.lasts:
        for line in lines:
            for path in (b"/metrics", b"/scale", b"/readyz?verbose"):
                line.send(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path)


def _large(port: int, pace: Pace, last: bytes) -> None:
    """Send requests of this content again and again, each line from its beginning whenever it was closed."""
    content = b"[" + b"1," * (LARGE // 2) + last
    request = memoryview(head("/imports", len(content)) + content)
    sent = {Line(port, pace): 0 for _ in range(8)}
    while pace.lasts:
        for line, start in sent.items():
            begin = 0 if line.new or start >= len(request) else start
            if pace.lasts:
                sent[line] = begin + PIECE if line.send(bytes(request[begin : begin + PIECE])) else 0


def _slowly(port: int, pace: Pace, first: bytes) -> None:
    lines = [Line(port, pace) for _ in range(CONNECTIONS)]
    while pace.lasts:
        for line in lines:
            line.send(first if line.new else b"1")
        time.sleep(SLOW_SECONDS)


ATTACKS: Mapping[str, Callable[[int, Pace], None]] = {
    one.__name__: one
    for one in (
        slow_headers, slow_content, half_open, many_connections, refused_content, unfinished_content, large_content,
        large_messages, endless_headers, endless_trailers, garbage, upgrades, questions,
    )
}  # fmt: skip


def main() -> None:
    """Attack a port for some seconds, with the least right to the CPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack.attackers", description=__doc__)
    parser.add_argument("attack", choices=list(ATTACKS))
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    os.nice(19)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(BEGUN, flush=True)
    pace = Pace(options.seconds)
    ATTACKS[options.attack](options.port, pace)
    print(pace.deeds)


if __name__ == "__main__":
    main()
