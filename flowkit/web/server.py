"""The HTTP server of a worker process: uvicorn on its own thread, on a socket that the instance's workers share."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from flowkit.fork import part_with
from flowkit.web.connection import Connection

KEEP_ALIVE_SECONDS = 20


class Server:
    """Serves an ASGI application on its own thread until it is closed."""

    def __init__(self, asgi: Any, listening: socket.socket, thread: str) -> None:
        config = uvicorn.Config(
            asgi,
            http=Connection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            server_header=False,
            date_header=True,
        )
        self._listening = listening
        self._server = uvicorn.Server(config)
        part_with(self, Server._sockets)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name=thread, daemon=True
        )
        self._thread.start()

    def close(self, seconds: float) -> bool:
        """Accept no more connections, and answer received requests for `seconds` at most. Returns whether all were
        answered. Blocks."""
        self._server.should_exit = True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _sockets(self) -> Iterator[int]:
        """File descriptors that a forked child must not keep: the port would stay in use, and clients of a dead worker
        would wait."""
        yield self._listening.fileno()
        for connection in self._server.server_state.connections:
            yield connection.transport.get_extra_info("socket").fileno()
