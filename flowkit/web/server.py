"""The HTTP server of a worker process: uvicorn, on a thread of its own, on a socket that its siblings share."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from flowkit.fork import part_with
from flowkit.web.connection import Connection

KEEP_ALIVE_SECONDS = 20


class Server:
    """Serves an ASGI application until it is closed."""

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
        """Take no more connections, and answer what came, at most for so long. Whether all was. Blocks."""
        self._server.should_exit = True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _sockets(self) -> Iterator[int]:
        """A forked child must not have these: the port would not be free, and clients of a dead worker would wait."""
        yield self._listening.fileno()
        for connection in self._server.server_state.connections:
            yield connection.transport.get_extra_info("socket").fileno()
