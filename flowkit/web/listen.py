"""Sockets that serve."""

import socket

from flowkit.errors import ConfigError
from flowkit.fork import part_with

BACKLOG = 2048
"""So many connections wait to be accepted."""


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
        raise ConfigError(
            f"{option} {address}: {error.strerror or error}; is another program listening there?"
        ) from None
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
