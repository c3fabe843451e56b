"""The heap of this process: large blocks return to the system as soon as they are freed."""

import ctypes

LARGE_BYTES = 1024 * 1024
"""Bytes from which the system gives a block its own pages. Most bodies are smaller."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The numbers of these parameters in malloc.h."""


def give_back() -> None:
    """Make the C library return most freed memory to the system.

    The GNU C library raises its thresholds with each large block that is freed: after a body of 15 MB, the heap of each
    thread keeps up to twice as much for good. Other C libraries do not; there this does nothing.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_MMAP_THRESHOLD, LARGE_BYTES)
        tune(_TRIM_THRESHOLD, 2 * LARGE_BYTES)
