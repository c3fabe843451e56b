"""CPU seconds of this process, and of the database's."""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def of_tree(root: int | None) -> float:
    """CPU seconds of a process and its living descendants; 0 without one. Linux only."""
    if root is None:
        return 0.0
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # parent; then own and reaped children's user and system time: `man proc`, fields 4 and 14 to 17
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    family, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in stats.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(stats[pid][1] for pid in family if pid in stats) / TICK


class Meter:
    """Wall time and CPU since it was made."""

    def __init__(self, database: int | None) -> None:
        self._database = database
        self._began = time.perf_counter(), time.process_time(), of_tree(database)

    def read(self) -> tuple[float, float, float]:
        """Seconds of wall time, of this process, of the database."""
        wall, own, database = self._began
        return (
            time.perf_counter() - wall,
            time.process_time() - own,
            of_tree(self._database) - database,
        )
