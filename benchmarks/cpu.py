"""Wall time, and CPU seconds of this process and of the database's. Linux only."""

import os
import time
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Seconds."""

    wall: float
    worker: float
    database: float


def of_tree(root: int | None) -> float:
    """CPU seconds of a process and its descendants, with those that ended; 0 without one."""
    if root is None:
        return 0.0
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # Parent; then own and reaped children's user and system time: `man proc`, fields 4 and 14 to 17.
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    family, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in stats.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(stats[pid][1] for pid in family if pid in stats) / TICK


class Meter:
    """Measures from when it is made. `database` is the server's process; None: it runs inside this one."""

    def __init__(self, database: int | None) -> None:
        self._database = database
        self._began = self._now()

    def read(self) -> Usage:
        """What was used since."""
        return Usage(*(now - then for now, then in zip(self._now(), self._began, strict=True)))

    def _now(self) -> Usage:
        return Usage(time.perf_counter(), time.process_time(), of_tree(self._database))
