"""Listening sockets: a supervisor binds them, and its workers share them."""

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
"""Variables with the file descriptors of the sockets that the workers share: for clients, and for operators."""
ADMIN_PORTS = 1000
"""Without --admin, the operators' port is the clients' port plus this number."""
NO_ADMIN = "none"
"""The value of --admin that turns the operators' port off."""
DOUBTS = {
    errno.EADDRINUSE: "is another program listening there?",
    errno.EADDRNOTAVAIL: "is it an address of this machine?",
    errno.EACCES: "ports below 1024 need a right of their own: take a higher one",
}
"""Error number of a failed bind -> what to check."""


def bind(address: str, option: str) -> socket.socket:
    """Bind a socket to HOST:PORT, the value of `option`. It does not listen yet. Blocks to resolve the host. Raises
    ConfigError."""
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
    """HOST:PORT of a socket, as in a URL."""
    host, port, *_ = bound.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(address: str, option: str) -> socket.socket:
    """Bind a socket to HOST:PORT, the value of `option`, and listen. Raises ConfigError."""
    made = bind(address, option)
    made.listen(BACKLOG)
    return made


def bind_shared(http: str, admin: str) -> list[socket.socket]:
    """Bind the workers' sockets: for clients and, by default on loopback, for operators. Empty without `http`. Raises
    ConfigError."""
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
    """File descriptors of the sockets that this worker serves: for clients, and for operators or None."""
    admin = os.environ.pop(ADMIN_VARIABLE, "")
    return int(os.environ.pop(HTTP_VARIABLE)), int(admin) if admin else None


def serve(shared: Sequence[socket.socket]) -> None:
    """Listen, so that clients can connect."""
    for one in shared:
        one.listen(BACKLOG)


def refuse(shared: Sequence[socket.socket]) -> None:
    """Stop listening, so that clients connect to an active instance."""
    for one in shared:
        with suppress(OSError):  # the socket does not listen
            one.shutdown(socket.SHUT_RDWR)
