"""`make soak`: a steady load for a long time, with faults, while memory, files and tables are watched for growth.

python -m tests.chaos.soak sqlite --minutes 20 --rate 60
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flowkit.errors import StoreUnavailable
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store.sqlite import WAL_BYTES
from tests.chaos.campaign import HOSTS, Campaign, Outcome, Plan
from tests.chaos.fleet import WORKERS, Client, Host
from tests.chaos.oracle import FLOWS
from tests.chaos.scene import Broker, Scene, Sqlite

SCENES: dict[str, Callable[[random.Random], Scene]] = {"sqlite": Sqlite, "rabbitmq": Broker}
FAULT_SECONDS = 10.0
"""Something breaks so often: a process and a service, by turns."""
WARM = 0.3
"""This share of the time passes before growth counts: caches fill, and connections open."""
LATEST = 2000
"""So many effects are looked through for those that are waited for."""
TAIL_BYTES = 2000
LONG_MINUTES = 10.0
"""From such a soak on the slope of a worker's memory says something."""
LEAK_BYTES = 200
"""For each run of a handler: what one object that is kept would be. Less are caches that fill, such as the 2 MB of each
connection to SQLite."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Sample:
    """What is measured, by the second."""

    memory: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """Worker -> seconds and bytes of memory. Of the host of which nothing is killed."""
    log_bytes: list[int] = field(default_factory=list)
    """SQLite's write-ahead log."""
    rows: list[int] = field(default_factory=list)
    """Message rows."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from when a client was told that its order is accepted until the last of its four handlers committed."""

    def faults(self, minutes: float, rate: float) -> list[str]:
        """What grew, or was not seen, in a soak of so long, with so many orders a second."""
        found = []
        if len(self.latencies) < 30 * minutes:
            found.append(f"vacuous: {len(self.latencies)} orders were seen at their end")
        if len(self.memory) != WORKERS:
            found.append(f"{len(self.memory)} workers were looked at: the host that is left alone has {WORKERS}")
        if max(self.log_bytes, default=0) > 2 * WAL_BYTES:
            found.append(f"the write-ahead log grew to {max(self.log_bytes):,} bytes")
        if max(self.rows) > rate * 60:
            found.append(f"{max(self.rows):,} message rows waited: more than those of a minute")
        for pid, points in self.memory.items():
            sizes = [size for _, size in points]
            third = len(sizes) // 3
            if third and max(sizes[-third:]) > 1.3 * max(sizes[third:-third]):
                found.append(f"worker {pid} grew: {sizes[third::third]} bytes")
            runs = rate * len(FLOWS) / (HOSTS * WORKERS)
            if minutes >= LONG_MINUTES and slope(points) > LEAK_BYTES * runs:
                found.append(f"worker {pid} grew by {slope(points):.0f} bytes a second, for {runs:g} runs of handlers")
        return found

    def report(self) -> dict[str, Any]:
        """As JSON. Growth is the slope of a straight line through what was measured."""
        centiles = statistics.quantiles(self.latencies, n=100)
        return {
            "probes": len(self.latencies),
            "latency_ms": {
                name: round(1000 * centiles[at - 1]) for name, at in (("p50", 50), ("p90", 90), ("p99", 99))
            },
            "workers": len(self.memory),
            "memory_mb": [round(max(size for _, size in one) / 1e6, 1) for one in self.memory.values()],
            "memory_growth_mb_per_hour": [round(slope(one) * 3600 / 1e6, 2) for one in self.memory.values()],
            "most_log_mb": round(max(self.log_bytes, default=0) / 1e6, 1),
            "most_rows": max(self.rows, default=0),
            "last_rows": self.rows[-1] if self.rows else 0,
        }


def slope(points: Sequence[tuple[float, int]]) -> float:
    """The growth per second of what is left of the start, by least squares."""
    warm = points[int(len(points) * WARM) :]
    return statistics.linear_regression(*zip(*warm, strict=True)).slope if len(warm) > 1 else 0.0


class Soak(Campaign):
    """A campaign by the clock. One host is left alone, so that its workers grow old."""

    def __init__(
        self, scene: Scene, seconds: float, rate: float, drawn: random.Random, tell: Callable[[str], None]
    ) -> None:
        super().__init__(scene, Plan(0, 0, 0, 0, 0), drawn, tell)
        self._seconds = seconds
        self._rate = rate
        self.sample = Sample()

    def _break_all(self, clients: list[Client], pool: ThreadPoolExecutor) -> None:
        began = time.monotonic()
        end, fault_at, faults = began + self._seconds, began + FAULT_SECONDS, self._faults()
        published = 0
        with self._watched(clients) as look:
            for second in range(int(self._seconds)):
                due = int(self._rate * (second + 1))
                for index, client in enumerate(clients):
                    client.publish((due - published) // len(clients) + (index < (due - published) % len(clients)))
                published = due
                if time.monotonic() > fault_at:
                    fault_at += FAULT_SECONDS
                    fault = next(faults)
                    self._break(fault, pool) if fault in self._scene.faults else self._strike(fault)
                self._measure(time.monotonic() - began)
                if second % 30 == 0:
                    self._tell(f"{second} s: {len(self.sample.latencies)} probes")
                self._wait(partial(look, min(began + second + 1, end)), 60, "a second passes")
        for service in list(self._broken):
            self._mended(service)

    def _faults(self) -> Iterator[str]:
        while True:
            yield self._drawn.choice(("kill", "pause"))
            yield self._drawn.choice(sorted(self._scene.faults))

    @property
    def _struck_hosts(self) -> list[Host]:
        return self._hosts[1:]

    def _measure(self, second: float) -> None:
        for pid in self._hosts[0].workers():
            size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
            self.sample.memory.setdefault(pid, []).append((second, size))
        if self._scene.url.startswith("sqlite"):
            log = Path(self._scene.url.removeprefix("sqlite:///") + "-wal")
            self.sample.log_bytes.append(log.stat().st_size if log.exists() else 0)

    @contextmanager
    def _watched(self, clients: Sequence[Client]) -> Iterator[Callable[[float], bool]]:
        """What looks at the database until a time, by the monotonic clock: how much is there, and which orders are at
        their end."""
        known: set[str] = set()
        probes: dict[str, float] = {}
        with closing(open_store(Settings(database_url=self._scene.url))) as store:

            def look(until: float) -> bool:
                for name, told in filter(None, map(latest, clients)):
                    if name not in known:
                        known.add(name)
                        probes[name] = told
                try:
                    with store.unit("") as unit:
                        ((rows,),) = unit.read("SELECT count(*) FROM flowkit_messages")
                        effects = unit.read(f"SELECT name FROM effects ORDER BY row DESC LIMIT {LATEST}")
                except StoreUnavailable:
                    return time.monotonic() >= until  # it is being broken; the next look sees what came meanwhile
                self.sample.rows.append(rows)
                ended = {name.split()[1] for (name,) in effects if name.startswith("audit ")}
                for name in ended & probes.keys():
                    self.sample.latencies.append(max(0.0, time.time() - probes.pop(name)))
                return time.monotonic() >= until

            yield look


def latest(client: Client) -> tuple[str, float] | None:
    """The last order of a client that was accepted and does nothing special, and when that was told."""
    with client.log.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = log.read().decode().split("\n")
    for line in reversed(lines[1:-1]):  # the first is cut off, and the last is empty or not written in whole
        name, deed, outcome, told = line.split()
        if (deed, outcome) == ("-", "ok"):
            return name, float(told)
    return None


def soak(
    name: str, minutes: float, rate: float, seed: int, tell: Callable[[str], None] = print
) -> tuple[Soak, Outcome]:
    """Run it. Returns what was measured, and what the oracle says."""
    drawn = random.Random(seed)
    with closing(SCENES[name](drawn)) as scene:
        run = Soak(scene, minutes * 60, rate, drawn, tell)
        return run, run.run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("scene", choices=SCENES)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=60, help="orders per second; each is four runs of handlers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    run, outcome = soak(options.scene, options.minutes, options.rate, options.seed)
    found = {"scene": options.scene, "minutes": options.minutes, "rate": options.rate}
    text = json.dumps({**found, **outcome.report(), **run.sample.report()}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(f"{text}\n")
    wrong = [*outcome.faults, *run.sample.faults(options.minutes, options.rate)]
    for fault in wrong[:20]:
        print(fault, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
