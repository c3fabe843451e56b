"""Servers that tests start for themselves."""

import random
import socket


def free_port() -> int:
    """A free port below those that the system hands to clients.

    A server that is down for a moment must find its port free again, and a client that tries to reconnect to
    a port of the clients' range can be given that very port, and be connected to itself.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise OSError("no free port found from 20000 to 32000")
