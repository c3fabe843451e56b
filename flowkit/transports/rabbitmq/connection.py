"""pika's connection, changed to read and write in larger pieces.

pika 1.4 sends each frame by its own system call, three for a message, and reads 4 KB at once. Here all frames of one
turn of the event loop are sent together, which saves work here and at the broker. pika also copies its read buffer once
for each frame, and looks for waiting callbacks after each one. Here a complete delivery goes straight to its consumer;
pika handles all other frames.
"""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from pika import BasicProperties
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.frame import decode_frame
from pika.spec import FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD, Basic

Arrived = tuple[Callable[[], None], int]
"""The call that gives a delivery to its consumer, and the offset of the next frame."""
READ_BYTES = 64 * 1024
FRAME = struct.Struct(">BHI")
"""The header of a frame: type, channel, and size of the content. One more byte follows the content."""
DELIVER = struct.pack(">I", Basic.Deliver.INDEX)
CONTENT = struct.Struct(">HHQ")
"""The start of a content header's data: class, weight, and size of the body."""
HEADER, BODY = bytes([FRAME_HEADER]), bytes([FRAME_BODY])
TAG = struct.Struct(">Q?")
"""A delivery tag, and whether the message is redelivered."""


class Connection(AsyncioConnection):
    """An AsyncioConnection with larger reads and writes. Lives on the I/O thread."""

    _nbio: Any
    _channels: dict[int, Any]
    _frame_buffer: bytes
    bytes_received: int
    _frames: list[bytes] | None = None
    """Frames written in this turn of the event loop; None if there are none."""

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = READ_BYTES
        super()._proto_connection_made(transport)  # type: ignore[misc]

    def _on_data_available(self, data: bytes) -> None:
        if not self.is_open:
            super()._on_data_available(data)  # type: ignore[misc]
            return
        read, at = self._frame_buffer + data, 0
        try:
            while (end := _end(read, at)) is not None:
                arrived = self._delivered(read, at, end)
                if arrived is not None:
                    give, at = arrived
                    give()
                else:
                    frame, at = read[at:end], end
                    self._process_frame(decode_frame(frame)[1])  # type: ignore[attr-defined]
        finally:
            self.bytes_received += at
            self._frame_buffer = read[at:]

    def _delivered(self, read: bytes, start: int, end: int) -> "Arrived | None":
        """Return the delivery that begins at `start`, if all its frames are read, no frame of another channel is among
        them, and its channel is idle and open. Return None otherwise: pika handles the frame."""
        if read[start] != FRAME_METHOD or not read.startswith(DELIVER, start + FRAME.size):
            return None
        tag = start + FRAME.size + len(DELIVER) + 1
        after = tag + read[tag - 1]
        channel, name = self._channels.get(FRAME.unpack_from(read, start)[1]), read[tag:after].decode()
        where = read[start + 1 : start + 3]
        if not channel or not channel.is_open or channel._content_assembler._method_frame or name in channel._cancelled:
            return None
        consumer = channel._consumers.get(name)
        header, last = end, _end(read, end)
        if consumer is None or last is None or not read.startswith(HEADER + where, header):
            return None
        content, parts = header + FRAME.size, []
        missing = CONTENT.unpack_from(read, content)[2]
        properties = read[content + CONTENT.size : last - 1]
        while missing > 0:
            body, last = last, _end(read, last)
            if last is None or not read.startswith(BODY + where, body):
                return None
            parts.append(read[body + FRAME.size : last - 1])
            missing -= len(parts[-1])
        if missing or read[last - 1] != FRAME_END:
            return None
        exchange = after + TAG.size + 1
        by = read[exchange : exchange + read[exchange - 1]].decode("utf-8", "replace")
        number, again = TAG.unpack_from(read, after)
        method = Basic.Deliver(name, number, again, by)
        return partial(consumer, channel, method, BasicProperties().decode(properties), b"".join(parts)), last

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._frames is None:
            self._frames = []
            self._nbio.add_callback_threadsafe(self._emit)
        self._frames.append(data)

    def _emit(self) -> None:
        frames, self._frames = self._frames or [], None
        if not self.is_closed:
            super()._adapter_emit_data(b"".join(frames))  # type: ignore[misc]


def _end(read: bytes, start: int) -> int | None:
    """Return the end of the frame that begins at `start`; None if it is incomplete. pika handles invalid frames."""
    if len(read) - start < FRAME.size:
        return None
    end = start + FRAME.size + FRAME.unpack_from(read, start)[2] + 1
    return end if end <= len(read) else None
