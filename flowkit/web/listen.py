"""Sockets that listen."""

import socket

from flowkit.errors import ConfigError

BACKLOG = 2048


def listen(address: str, option: str) -> socket.socket:
    """A socket that listens at HOST:PORT, the value of this option. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{option} {address}: write HOST:PORT, such as 0.0.0.0:8080")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        made = socket.create_server(where[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{option} {address}: {error.strerror or error}; is another program listening there?"
        ) from None
    return made
