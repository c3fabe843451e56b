"""A connection as pika makes it, which reads and writes in larger pieces.

pika 1.4 sends each frame by a system call of its own, three for a message, and reads 4 KB at once. Here all frames that
are written in one turn of the event loop go together: less work here, and at the broker.
"""

from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection

READ_BYTES = 64 * 1024


class Connection(AsyncioConnection):
    """Lives on the I/O thread, as pika's own does."""

    _nbio: Any
    _frames: list[bytes] | None = None
    """Written in this turn of the event loop."""

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = READ_BYTES
        super()._proto_connection_made(transport)  # type: ignore[misc]

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._frames is None:
            self._frames = []
            self._nbio.add_callback_threadsafe(self._emit)
        self._frames.append(data)

    def _emit(self) -> None:
        frames, self._frames = self._frames or [], None
        if not self.is_closed:
            super()._adapter_emit_data(b"".join(frames))  # type: ignore[misc]
