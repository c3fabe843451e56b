"""The heap of this process: what is large goes back to the system as soon as it is freed."""

import ctypes

LARGE_BYTES = 1024 * 1024
"""Bytes from which a block gets pages of its own from the system. Most bodies are smaller."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""As in malloc.h."""


def give_back() -> None:
    """Let the C library keep little of what is freed.

    The GNU C library takes each large block that is freed for one that is wanted again soon: after a body of 15 MB the
    heap of each thread keeps up to twice as much, for good. Other C libraries do not, and are left as they are.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_MMAP_THRESHOLD, LARGE_BYTES)
        tune(_TRIM_THRESHOLD, 2 * LARGE_BYTES)
