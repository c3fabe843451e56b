"""The disk under a measurement. When the disk stalls, every COMMIT stalls."""

import os
import tempfile
import threading
import time
from typing import NamedTuple, Self

BLOCK = bytes(8192)
BLOCKS = 2048
PAUSE_SECONDS = 0.005
STALL_SECONDS = 0.01
"""A small write takes a hundredth of that."""


class Stall(NamedTuple):
    """When a small write did not reach the disk, by the monotonic clock in seconds."""

    begin: float
    end: float


class Disk:
    """Makes small writes durable, in a file of its own that has its size already, as a database's log does, and keeps
    which of them took long. A context manager: it watches from the beginning to the end of it, in a thread."""

    def __init__(self) -> None:
        self.stalls: list[Stall] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def stalled(self, begin: float, end: float) -> bool:
        """Whether a stall, or the backlog of it, which takes as long to go as it took to come, was in this time."""
        return any(begin < 2 * stall.end - stall.begin and stall.begin < end for stall in self.stalls)

    def _watch(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="flowkit-bench-") as file:
            file.write(BLOCK * BLOCKS)
            file.flush()
            os.fsync(file.fileno())
            number = 0
            while not self._ending.wait(PAUSE_SECONDS):
                number = (number + 1) % BLOCKS
                os.pwrite(file.fileno(), BLOCK, number * len(BLOCK))
                began = time.monotonic()
                os.fdatasync(file.fileno())
                ended = time.monotonic()
                if ended - began > STALL_SECONDS:
                    self.stalls.append(Stall(began, ended))
