"""Sockets that serve."""

import errno
import socket

from flowkit.errors import ConfigError
from flowkit.fork import part_with

BACKLOG = 2048
"""So many connections wait to be accepted."""
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
