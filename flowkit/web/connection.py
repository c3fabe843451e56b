"""Connections of clients: uvicorn's httptools protocol with limits for headers, trailers and time, which it lacks."""

import asyncio
import logging
import resource
from collections import deque
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from flowkit.web.content import CONTENT_SECONDS
from flowkit.web.problem import RETRY_SECONDS, Problem

HEAD_BYTES = 32 * 1024
"""Most bytes of a request's line and headers, and of the bytes between two pieces of its content."""
HEAD_SECONDS = 10.0
"""Longest time in seconds for a request's line and headers to arrive."""
MESSAGE_SECONDS = CONTENT_SECONDS + HEAD_SECONDS
"""Longest time in seconds for the rest of a request to arrive, even if the route does not read it."""
ANSWER_SECONDS = 30.0
"""Longest time in seconds in which a client may read nothing of its answer."""
PIPELINED = 100
"""Most requests on one connection that wait for the answers to earlier ones."""
CONNECTIONS = 1000
"""Most connections of a process; `most_connections` lowers this to its limit of open files."""
_log = logging.getLogger("flowkit.http")


def most_connections() -> int:
    """Most connections of this process: CONNECTIONS, or half of the files that it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, files // 2)


class TooMuch(Exception):
    """Stops the parser at a request that exceeds a limit."""


class Connection(HttpToolsProtocol):
    """One connection of a client. It refuses requests that are too large or too slow, ignores trailers, and does not
    upgrade from HTTP/1.1. Lives on the event loop."""

    _head = True
    """Whether the parser has not finished a request's line and headers yet."""
    _whole = True
    """Whether no request is partly received."""
    _unread = 0
    """Bytes received since the parser finished headers, a piece of content, or a request."""
    _timer: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _problem: Problem | None = None

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self._cycles: deque[RequestResponseCycle] = deque()
        self._limit(HEAD_SECONDS)
        if len(self.connections) > most_connections():
            idle = [one for one in self.connections if isinstance(one, Connection) and one.first is None]
            idlest = min(idle, key=lambda one: (one.since, one is self))
            if idlest is not self:  # if it is, its request will be refused
                self.connections.discard(idlest)
                idlest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unlimit()
        for cycle in self._cycles:
            cycle.disconnected = True
        self.resume_writing()
        super().connection_lost(exc)

    @property
    def first(self) -> RequestResponseCycle | None:
        """The received request that is answered next; None if all are answered."""
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        return self._cycles[0] if self._cycles else None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # or the connection would stay open until the client reads its answer
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    # ------------------------------------------------------------ requests

    def data_received(self, data: bytes) -> None:
        self.since = self.loop.time()
        self._unread += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP request")
            return
        if self._unread > HEAD_BYTES:
            self._problem = _too_large()
            self.send_400_response("")
        elif self._whole and not self._unread:
            self._unlimit()
        elif self._timer is None:
            self._limit(HEAD_SECONDS if self._head or self._whole else MESSAGE_SECONDS)

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # The parser has skipped the content. Parse the request again, without the headers that ask to upgrade.
                lines = [b"%s %s HTTP/1.1" % (self._method, self.url)]
                lines += [b"%s: %s" % one for one in self.headers if one[0] not in (b"connection", b"upgrade")]
                data = b"\r\n".join([*lines, b"", data[upgrade.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._whole = True, False
        self._unlimit()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head:  # later ones are trailers, which are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._problem = _too_large()
            raise TooMuch
        if self.parser.should_upgrade():
            self._method = self.parser.get_method()
            if self._method == b"CONNECT":
                self._problem = Problem(HTTPStatus.NOT_IMPLEMENTED, "this is no proxy: it has no CONNECT")
                raise TooMuch
            return
        if max(len(self.connections), len(self.tasks)) > most_connections():
            _log.warning("a request was refused: all of %d connections are busy", most_connections())
            self._problem = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "all connections are busy; nothing was accepted", RETRY_SECONDS
            )
            raise TooMuch
        self._head, self._unread = False, 0
        self._unlimit()
        if len(self.pipeline) >= PIPELINED:
            raise TooMuch
        super().on_headers_complete()
        if self.first is not self.cycle:  # always true; reading `first` drops the answered requests
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `_feed` parses it again
        self._whole, self._unread = True, 0
        super().on_message_complete()

    # ------------------------------------------------------------ refusals

    def send_400_response(self, msg: str) -> None:
        """Refuse the request and close the connection. If an earlier complete request is unanswered, answer that
        instead."""
        if self.first is not None and not self.first.more_body:
            self._cycles[-1].keep_alive = False
            self.flow.pause_reading()
            return
        answer = (self._problem or Problem(HTTPStatus.BAD_REQUEST, msg)).response()
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = [b"HTTP/1.1 %d %s" % (answer.status_code, HTTPStatus(answer.status_code).phrase.encode())]
        lines += [b"%s: %s" % one for one in headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()

    def _limit(self, seconds: float) -> None:
        self._unlimit()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _unlimit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        """Refuse a request that has not arrived in time."""
        self._timer = None
        if self.first is not None and not self.first.more_body:
            self._limit(HEAD_SECONDS)  # an earlier request is not answered yet
        elif self.first is None and self._unread:
            self._problem = Problem(HTTPStatus.REQUEST_TIMEOUT, f"the headers did not come within {HEAD_SECONDS:g} s")
            self.send_400_response("")
        else:
            self.transport.abort()


def _too_large() -> Problem:
    return Problem(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"the request's line and headers have more than {HEAD_BYTES:,} bytes",
    )
