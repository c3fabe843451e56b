"""Sockets that serve: bound by a supervisor, and shared by its workers."""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from flowkit.errors import ConfigError
from flowkit.fork import part_with

BACKLOG = 2048
"""Connections that may wait to be accepted."""
HTTP_VARIABLE, ADMIN_VARIABLE = "FLOWKIT_HTTP_SOCKET", "FLOWKIT_ADMIN_SOCKET"
"""The open files of the sockets that the supervisor's workers share: for clients, and for operators."""
ADMIN_PORTS = 1000
"""The port for operators is this much higher than that for clients, unless --admin says where."""
NO_ADMIN = "none"
"""The value of --admin by which operators are not served."""
DOUBTS = {
    errno.EADDRINUSE: "is another program listening there?",
    errno.EADDRNOTAVAIL: "is it an address of this machine?",
    errno.EACCES: "ports below 1024 need a right of their own: take a higher one",
}
"""Why an address cannot be bound -> what to look at."""


def bind(address: str, option: str) -> socket.socket:
    """A socket bound to HOST:PORT, the value of this option, that does not listen yet. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{option} {address}: write HOST:PORT, such as 0.0.0.0:8080; a port is 65535 at most")
    made = None
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except OSError as error:
        if made is not None:
            made.close()
        doubt = DOUBTS.get(error.errno or 0, "is it HOST:PORT, such as 0.0.0.0:8080?")
        raise ConfigError(f"{option} {address}: {error.strerror or error}; {doubt}") from None
    part_with(made, lambda one: [one.fileno()])
    return made


def named_place(bound: socket.socket) -> str:
    """HOST:PORT of a socket, as a URL has it."""
    host, port, *_ = bound.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(address: str, option: str) -> socket.socket:
    """The same, listening."""
    made = bind(address, option)
    made.listen(BACKLOG)
    return made


def bind_shared(http: str, admin: str) -> list[socket.socket]:
    """The sockets that the workers are to serve: for clients and, by default on loopback, for operators."""
    if not http:
        return []
    clients = bind(http, "--http")
    os.environ[HTTP_VARIABLE] = str(clients.fileno())
    if admin == NO_ADMIN:
        return [clients]
    place = admin or f"127.0.0.1:{clients.getsockname()[1] + ADMIN_PORTS}"
    operators = bind(place, "--admin" if admin else "--admin (by default the port of --http + 1000)")
    os.environ[ADMIN_VARIABLE] = str(operators.fileno())
    return [clients, operators]


def inherited() -> tuple[int, int | None]:
    """The open files of the sockets that this worker serves: for clients, and for operators if there is one."""
    admin = os.environ.pop(ADMIN_VARIABLE, "")
    return int(os.environ.pop(HTTP_VARIABLE)), int(admin) if admin else None


def serve(shared: Sequence[socket.socket]) -> None:
    """Let clients connect."""
    for one in shared:
        one.listen(BACKLOG)


def refuse(shared: Sequence[socket.socket]) -> None:
    """Refuse clients: they connect to an active instance."""
    for one in shared:
        with suppress(OSError):  # it does not listen
            one.shutdown(socket.SHUT_RDWR)
