"""Messages in flight, in shared memory. Each lane notes the message that it runs, and the supervisor reads the notes
when the worker process has died.

The supervisor makes the file, and both map it. Its header has 64 bytes: the id of the worker, the token under which its
group is active, and whether it is ready. Slots follow: one for each lane, then one for each message whose `async def`
handler runs. A slot has a byte for the state, two bytes for the length of the identity, and the identity as UTF-8, its
parts separated by NUL. Noting a message takes 0.3 µs.
"""

import mmap
import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from flowkit.ports import Identity

HEADER = 64
TOKEN = 48
"""The place of the token, by which a worker of a group knows whether it may begin."""
READY = 63
"""The place where a worker writes whether it is ready."""
SLOT = 3200
COUNT = 2048


class State(IntEnum):
    """The state of the message in a slot."""

    IDLE = 0
    RUNNING = 1
    ALONE = 2
    """The message is a suspect, and nothing else runs in the process."""
    OVERDUE = 3
    """The handler runs past its deadline."""
    WAITING = 4
    """The handler is an `async def` that awaits something. Other handlers run meanwhile."""


class InFlight(NamedTuple):
    """A message that ran when its process died."""

    identity: Identity
    state: State


class Slots:
    """The slots of one worker process, on a file descriptor or in plain memory."""

    def __init__(self, descriptor: int = -1) -> None:
        self._memory = mmap.mmap(descriptor, HEADER + SLOT * COUNT)
        self._free: deque[int] = deque()

    @property
    def worker(self) -> str:
        return self._memory[:TOKEN].rstrip(b"\0").decode()

    @worker.setter
    def worker(self, id: str) -> None:
        self._memory[:TOKEN] = id.encode().ljust(TOKEN, b"\0")

    @property
    def token(self) -> int:
        """The token under which the group of this worker is active; 0 while the group is not active."""
        (token,) = struct.unpack_from("<q", self._memory, TOKEN)
        return int(token)

    @token.setter
    def token(self, token: int) -> None:
        struct.pack_into("<q", self._memory, TOKEN, token)

    @property
    def ready(self) -> bool:
        """Whether the worker has all that it needs, and does not shut down."""
        return bool(self._memory[READY])

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._memory[READY] = ready

    def slot(self, number: int) -> "Slot":
        """The slot of one lane."""
        return Slot(self._memory, HEADER + SLOT * (number % COUNT))

    def share(self, lanes: int) -> None:
        """Let messages take the slots that this number of lanes leaves over."""
        self._free.extend(range(lanes, COUNT))

    def take(self) -> "Slot":
        """Return a slot for one message, until it is put back. Any thread may call it.

        If no slot is left, the message shares that of the first lane. A neighbour may then be suspected instead, and
        has to run alone once."""
        try:
            return self.slot(self._free.popleft())
        except IndexError:
            return self.slot(0)

    def put_back(self, slot: "Slot") -> None:
        """Clear the slot of a message, so that another message can take it."""
        slot.strike()
        if slot.number:
            self._free.append(slot.number)

    def in_flight(self) -> Iterator[InFlight]:
        """Iterate over the messages that are noted and not struck off."""
        for start in range(HEADER, HEADER + SLOT * COUNT, SLOT):
            state = State(self._memory[start])
            if state is not State.IDLE:
                (length,) = struct.unpack_from("<H", self._memory, start + 1)
                flow, source, id = self._memory[start + 3 : start + 3 + length].decode().split("\0")
                yield InFlight((flow, source, id), state)

    def clear(self) -> None:
        """Clear all slots and the header."""
        self._memory[:] = bytes(len(self._memory))

    def close(self) -> None:
        self._memory.close()


class Slot:
    """The place where one lane notes the message that it runs. The state is written last, so a note that is not
    complete does not count."""

    __slots__ = ("_memory", "_start")

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self._start = start

    @property
    def number(self) -> int:
        return (self._start - HEADER) // SLOT

    def note(self, identity: Identity, state: State) -> None:
        name = "\0".join(identity).encode()
        start = self._start
        self._memory[start + 1 : start + 3 + len(name)] = struct.pack("<H", len(name)) + name
        self._memory[start] = state

    def mark(self, state: State) -> None:
        """Change the state of the message that is noted."""
        self._memory[self._start] = state

    def strike(self) -> None:
        self._memory[self._start] = State.IDLE
