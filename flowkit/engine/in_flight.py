"""Messages in flight, in shared memory: each lane notes which message it runs; the supervisor reads it after a death.

The file is made by the supervisor and mapped by both: 64 bytes for the worker's id, the token under which its group
is active, and whether it is ready; then one slot per lane, then those of messages whose `async def` handlers are at
work: a state byte, the length of the identity as two bytes, the identity as UTF-8 separated by NUL. Noting one costs
0.3 µs.
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
"""Where a worker of a group reads whether it may begin."""
READY = 63
"""Where a worker says whether it is ready."""
SLOT = 3200
COUNT = 2048


class State(IntEnum):
    """What a lane is doing with a message."""

    IDLE = 0
    RUNNING = 1
    ALONE = 2
    """It is a suspect, and nothing else runs in the process."""
    OVERDUE = 3
    """It is past its deadline."""
    WAITING = 4
    """Its `async def` handler has begun, and awaits something: others run meanwhile."""


class InFlight(NamedTuple):
    """A message that was running when its process died."""

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
        """The token under which the group of this worker is active; 0: it is not."""
        (token,) = struct.unpack_from("<q", self._memory, TOKEN)
        return int(token)

    @token.setter
    def token(self, token: int) -> None:
        struct.pack_into("<q", self._memory, TOKEN, token)

    @property
    def ready(self) -> bool:
        """Whether the worker has everything that it needs, and is not about to end."""
        return bool(self._memory[READY])

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._memory[READY] = ready

    def slot(self, number: int) -> "Slot":
        """The slot of one lane."""
        return Slot(self._memory, HEADER + SLOT * (number % COUNT))

    def share(self, lanes: int) -> None:
        """Let messages have the slots that so many lanes leave over."""
        self._free.extend(range(lanes, COUNT))

    def take(self) -> "Slot":
        """A slot for one message, until it is put back. Any thread may call it. Where none is left the first lane's is
        shared: the blame may then fall on a neighbour, which has to run alone once."""
        try:
            return self.slot(self._free.popleft())
        except IndexError:
            return self.slot(0)

    def put_back(self, slot: "Slot") -> None:
        """Strike off what a message's slot notes, and let others have it."""
        slot.strike()
        if slot.number:
            self._free.append(slot.number)

    def in_flight(self) -> Iterator[InFlight]:
        """The messages that lanes have noted and not struck off."""
        for start in range(HEADER, HEADER + SLOT * COUNT, SLOT):
            state = State(self._memory[start])
            if state is not State.IDLE:
                (length,) = struct.unpack_from("<H", self._memory, start + 1)
                flow, source, id = self._memory[start + 3 : start + 3 + length].decode().split("\0")
                yield InFlight((flow, source, id), state)

    def clear(self) -> None:
        """Strike off everything."""
        self._memory[:] = bytes(len(self._memory))

    def close(self) -> None:
        self._memory.close()


class Slot:
    """Where one lane notes the message that it runs. The state is written last: a torn note is no note."""

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
        """Change the state of what is noted."""
        self._memory[self._start] = state

    def strike(self) -> None:
        self._memory[self._start] = State.IDLE
