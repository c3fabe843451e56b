"""Wall time, and CPU seconds of this process and of the servers' processes. Linux only."""

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Seconds."""

    wall: float
    worker: float
    servers: float


def of_trees(roots: Collection[int]) -> float:
    """CPU seconds of these processes and their descendants, with those that ended."""
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # Parent; then own and reaped children's user and system time: `man proc`, fields 4 and 14 to 17.
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    family, grown = set(roots), True
    while grown:
        more = {pid for pid, (parent, _) in stats.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(stats[pid][1] for pid in family if pid in stats) / TICK


class Meter:
    """Measures from when it is made."""

    def __init__(self, servers: Collection[int]) -> None:
        self._servers = servers
        self._began = self._now()

    def read(self) -> Usage:
        """What was used since."""
        return Usage(*(now - then for now, then in zip(self._now(), self._began, strict=True)))

    def _now(self) -> Usage:
        return Usage(time.perf_counter(), time.process_time(), of_trees(self._servers))
