"""A TCP proxy that breaks the network at a chosen moment."""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field

from tests.services import free_port

CHUNK = 65536
ANSWER_SECONDS = 10.0
"""How long a server has for what it was sent last, before its client is cut off all the same."""


@dataclass(eq=False)
class _Link:
    client: socket.socket
    server: socket.socket
    tail: bytes = b""
    """The last bytes of what the client sent: a pattern may come in two pieces."""
    muted: bool = False
    """What the server answers is thrown away."""
    answer: bytes = b""
    """The answer that is waited for before a cut."""
    dead: bool = False
    served: threading.Event = field(default_factory=threading.Event)
    """The server will say no more."""

    def shut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Forwards connections from a port of its own to a server. Any thread may call it."""

    def __init__(self, target_host: str, target_port: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._target = (target_host, target_port)
        self._changed = threading.Condition()
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._flowing = True
        self._trigger: tuple[bytes, bool, bytes] | None = None
        self._listener: socket.socket | None = None
        self.arrivals: list[float] = []
        """When each client came, by the monotonic clock."""
        self.cuts = 0
        """How many connections have been cut."""
        self.port = free_port()
        self.accept()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def accept(self) -> None:
        """Let new connections in again, after `refuse`."""
        if self._listener is None:
            self._listener = socket.create_server((self._host, self.port))
            self._acceptor = threading.Thread(target=self._listen, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def refuse(self) -> None:
        """Refuse new connections. Those that are open stay."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake a thread in accept()
            self._acceptor.join()
            self._listener.close()
            self._listener = None

    def cut(self) -> None:
        """End all connections."""
        with self._changed:
            links = list(self._links)
        for link in links:
            self._cut(link)

    def cut_when(self, pattern: bytes, forward: bool, answer: bytes = b"") -> None:
        """Once, cut the connection on which the client sends `pattern`, instead of answering.

        With `forward` the server has received it by then, and without, it never gets it. A server may drop what it
        has received from a client that is gone: with `answer` it has said that, and the client has not heard it.
        """
        with self._changed:
            self._trigger = (pattern, forward, answer)

    def blackhole(self) -> None:
        """Stop forwarding, both ways. Connections stay open, and new ones are accepted."""
        with self._changed:
            self._flowing = False

    def forward(self) -> None:
        """Forward again after `blackhole`, first what was held back."""
        with self._changed:
            self._flowing = True
            self._changed.notify_all()

    def close(self) -> None:
        """End everything, and wait until it has ended."""
        self.refuse()
        with self._changed:
            links, threads = list(self._links), list(self._threads)
        for link in links:
            self._end(link)
        for thread in threads:
            thread.join()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.arrivals.append(time.monotonic())
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            thread = threading.Thread(target=self._serve, args=(link,), daemon=True)
            with self._changed:
                self._links.add(link)
                self._threads = [one for one in self._threads if one.is_alive()] + [thread]
                thread.start()

    def _serve(self, link: _Link) -> None:
        answers = threading.Thread(target=self._pump_answers, args=(link,), daemon=True)
        answers.start()
        self._pump_requests(link)
        answers.join()
        with self._changed:
            self._links.discard(link)
        link.client.close()
        link.server.close()

    def _pump_requests(self, link: _Link) -> None:
        try:
            while data := link.client.recv(CHUNK):
                if not self._hold(link):
                    return
                forward = self._match(link, data)
                if forward is not None and not link.answer:
                    if forward:
                        self._deliver_last(link, data)
                    self._cut(link)
                    return
                link.server.sendall(data)
            if self._hold(link):  # the end of a stream does not get through a blackhole either
                link.server.shutdown(socket.SHUT_WR)
        except OSError:
            self._hold(link)
            self._end(link)

    def _pump_answers(self, link: _Link) -> None:
        unheard = b""
        try:
            while data := link.server.recv(CHUNK):
                if not self._hold(link):
                    return
                if not link.muted:
                    link.client.sendall(data)
                    continue
                unheard += data
                if link.answer and link.answer in unheard:
                    self._cut(link)
            if self._hold(link) and not link.muted:
                link.client.shutdown(socket.SHUT_WR)
        except OSError:
            if self._hold(link) and not link.muted:
                self._end(link)
        finally:
            link.served.set()

    def _hold(self, link: _Link) -> bool:
        """Wait out a blackhole. False if the connection has been ended meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._flowing or link.dead)
            return not link.dead

    def _match(self, link: _Link, data: bytes) -> bool | None:
        """Disarm the trigger and return whether to forward, if the client has just sent the pattern."""
        with self._changed:
            if self._trigger is None:
                link.tail = data  # no more than a chunk: enough for a pattern that is set between its pieces
                return None
            pattern, forward, answer = self._trigger
            seen = link.tail[-(len(pattern) - 1) :] + data if len(pattern) > 1 else data
            link.tail = seen
            if pattern not in seen:
                return None
            self._trigger = None
            link.answer = answer
            link.muted = True
            return forward

    def _deliver_last(self, link: _Link, data: bytes) -> None:
        """Hand over what came last and wait until the server, seeing its client gone, has done it and closed."""
        with contextlib.suppress(OSError):
            link.server.sendall(data)
            with contextlib.suppress(BlockingIOError):  # the end of the same message, if it came in pieces
                while more := link.client.recv(CHUNK, socket.MSG_DONTWAIT):
                    link.server.sendall(more)
            link.server.shutdown(socket.SHUT_WR)
            link.served.wait(ANSWER_SECONDS)

    def _cut(self, link: _Link) -> None:
        self._end(link, cuts=1)

    def _end(self, link: _Link, cuts: int = 0) -> None:
        with self._changed:
            if link.dead or link not in self._links:
                return
            link.dead = True
            self.cuts += cuts  # before anyone can notice
            self._changed.notify_all()
            link.shut()  # not after the lock: its sockets may be closed by then, and their numbers in use again
