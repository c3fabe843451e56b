"""The processes under chaos: hosts with their workers, and clients."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
WORKERS = 2
SETTLED_SECONDS = 1.5
"""A worker that is older than this works."""
STOP_SECONDS = 90.0
UNAVAILABLE = 3
"""Exit status of a supervisor that cannot start because the database is away."""


class Host:
    """A supervisor with its workers, as on a host of its own. All of them can be killed, or one."""

    def __init__(self, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self._log = log
        self._paused: set[int] = set()
        self._orphans: set[int] = set()
        """Workers of the supervisors that were killed."""
        self._since: dict[int, float] = {}
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.host", "run", "tests.chaos.app:app", "--workers", str(WORKERS)],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def workers(self) -> list[int]:
        """The processes of its workers that are at work."""
        now = time.monotonic()
        pids = children(self._process.pid)
        self._since = {pid: self._since.get(pid, now) for pid in pids}
        return [pid for pid, since in self._since.items() if now - since > SETTLED_SECONDS and pid not in self._paused]

    def kill(self) -> None:
        """The host dies: the supervisor and all its workers at once, so that nobody tells of them. It starts again."""
        workers = children(self._process.pid)
        self.kill_supervisor()
        for pid in filter(lives, workers):
            os.kill(pid, signal.SIGKILL)

    def kill_supervisor(self) -> None:
        """It dies, and is replaced. Its workers are asked to end by that; a paused one hears of it when it goes on."""
        self._orphans |= set(children(self._process.pid))
        self._process.kill()
        self._process.communicate()
        self.start()

    def kill_worker(self, pid: int) -> bool:
        """One of its workers dies; its supervisor replaces it. False if it had ended already."""
        self._since.pop(pid, None)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def pause(self, pid: int) -> None:
        self._paused.add(pid)
        os.kill(pid, signal.SIGSTOP)

    def resume(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # its host was killed meanwhile
            os.kill(pid, signal.SIGCONT)
        self._paused.discard(pid)

    def revive(self) -> None:
        """Start it again, as the system's service manager does, if it found no database at its start."""
        status = self._process.poll()
        if status is not None:
            assert status == UNAVAILABLE, f"a supervisor ended with status {status}: see the log"
            self._process.communicate()
            self.start()

    def stop(self) -> int:
        """Stop in good order. Returns the exit status, when all its workers have ended too."""
        self._process.terminate()
        status = self._process.wait(STOP_SECONDS)
        end = time.monotonic() + STOP_SECONDS
        while any(map(lives, self._orphans)):
            assert time.monotonic() < end, "a worker outlived its supervisor"
            time.sleep(0.05)
        return status

    def close(self) -> None:
        workers = self._orphans | set(children(self._process.pid))
        self._process.kill()
        self._process.communicate()
        for pid in filter(lives, workers):
            os.kill(pid, signal.SIGKILL)


class Client:
    """A publisher of its own process. It publishes as many orders as it is told to."""

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path, log: IO[bytes]) -> None:
        self.log = folder / f"client-{name}"
        self.log.touch()
        self.name = name
        self.asked = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.client", name, str(self.log)],
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )

    def publish(self, orders: int) -> None:
        """Go on by so many. Does not wait for it."""
        assert self._process.stdin is not None
        assert self._process.poll() is None, f"client {self.name} died: see the log"
        self.asked += orders
        self._process.stdin.write(f"{orders}\n")
        self._process.stdin.flush()

    @property
    def behind(self) -> int:
        """How many orders have no outcome yet."""
        return self.asked - self.log.read_bytes().count(b"\n")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def children(pid: int) -> list[int]:
    """The processes that this one started and that live, by Linux's /proc."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in listed.split()]


def lives(pid: int) -> bool:
    """Whether this is a worker's process still."""
    try:
        return b"tests.chaos.app" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
