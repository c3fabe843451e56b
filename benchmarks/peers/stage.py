"""The stage of the contenders: a new database and queues for each, their processes, and the CPU that these used."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.contender import Lost, Place
from benchmarks.cpu import of_trees
from benchmarks.database import Database
from benchmarks.peers.entries import Entry
from benchmarks.peers.part import VARIABLE, Books, Brief, Tally

DEADLINE_SECONDS = 180.0
"""A run that takes longer has lost something."""
LOOK_SECONDS = 0.005
END_SECONDS = 20.0
WARM = 0.1
"""This part of the messages is not measured: connections, caches and prepared statements are made with them."""


class Run(NamedTuple):
    """What was measured of the messages that were."""

    rate: float
    """Messages per second."""
    cpu: dict[str, float]
    """Microseconds per message, of the worker's processes and of each server's."""


class Stage:
    """One entry on one database."""

    def __init__(self, entry: Entry, database: Database, folder: Path) -> None:
        self.entry = entry
        self._place: Place = database.fresh()
        self._folder = folder
        self._log = folder / "log"
        self._brief = Brief(
            database=self._place.database,
            broker=self._place.broker,
            tally=folder / "tally",
            work=entry.work,
            style=entry.style,
            shape=entry.shape,
            quorum=entry.quorum,
        )
        if entry.module not in ("flowkit", "naive"):  # they make their own
            Books(self._brief).make()
        self._tallies: list[Tally] = []
        """One for each worker."""

    def throughput(self, count: int, workers: int = 1) -> Run:
        """The queue is full, and a worker empties it, or several. It is measured from when each of them has begun."""
        self._finish(self._begin("fill", "0", str(count), "0"))
        with ExitStack() as undo:
            working = [undo.enter_context(self._worker()) for _ in range(workers)]
            self._await(int(count * WARM), working)
            done, began, used = self._done(), time.perf_counter(), self._used(working)
            self._await(count, working)
            seconds, now = time.perf_counter() - began, self._used(working)
            self._check(count)
        measured = count - done
        return Run(measured / seconds, {who: (now[who] - used[who]) / measured * 1e6 for who in now})

    def latency(self, count: int, rate: float) -> list[float]:
        """Messages come at a steady rate. Seconds from when each was due to its commit, without the first ones."""
        # Its queues, and what it compiles and imports, are there before the first one is due.
        self._finish(self._begin("fill", "0", "1", "0"))
        with self._worker() as worker:
            self._await(1, [worker])
            self._finish(self._begin("fill", "1", str(count), str(rate)))
            self._await(count + 1, [worker])
        return self._tallies[0].seconds()[int(count * WARM) :]

    def _begin(self, *arguments: str, tally: Path | None = None) -> "subprocess.Popen[bytes]":
        brief = self._brief.model_copy(update={"tally": tally} if tally else {})
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.peers.{self.entry.module}", *arguments],
                env={**os.environ, VARIABLE: brief.model_dump_json()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _finish(self, process: "subprocess.Popen[bytes]") -> None:
        if process.wait(DEADLINE_SECONDS):
            raise Lost(f"{self.entry.title}: {self._said()}")

    @contextmanager
    def _worker(self) -> "Iterator[subprocess.Popen[bytes]]":
        tally = self._folder / f"tally-{len(self._tallies)}"
        self._tallies.append(Tally(tally))
        process = self._begin("work", tally=tally)
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):  # it has done its work; how it ends is not measured
                process.wait(END_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and its children
            process.wait()

    def _done(self) -> int:
        return sum(one.count() for one in self._tallies)

    def _await(self, count: int, working: "Sequence[subprocess.Popen[bytes]]") -> None:
        """Wait until so many are done, some of them by each worker."""
        end = time.monotonic() + DEADLINE_SECONDS
        while self._done() < count or not all(one.count() for one in self._tallies):
            if any(one.poll() is not None for one in working) or time.monotonic() > end:
                each = " + ".join(str(one.count()) for one in self._tallies)
                raise Lost(f"{self.entry.title} did {each} of {count}: {self._said()}")
            time.sleep(LOOK_SECONDS)

    def _check(self, count: int) -> None:
        self._finish(self._begin("check", str(count)))
        if self._done() != count:
            raise Lost(f"{self.entry.title} did {self._done()}, not {count}")

    def _used(self, working: "Sequence[subprocess.Popen[bytes]]") -> dict[str, float]:
        servers = {who: of_trees([pid]) for who, pid in self._place.servers.items()}
        return {"worker": of_trees([one.pid for one in working]), **servers}

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-3000:] or "it said nothing"


@contextmanager
def stage(entry: Entry, database: Database) -> Iterator[Stage]:
    """A stage that leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="flowkit-peers-") as folder:
        yield Stage(entry, database, Path(folder))
