"""A supervised worker process of the app under fuzz: it has to live until it is asked to end."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.fleet import ROOT, children

START_SECONDS = 60.0
STOP_SECONDS = 60.0
DEATH = re.compile(r"Traceback \(most recent|died \(|asked to be replaced|no connection to RabbitMQ|a step failed")
"""What its log must not say."""


class Host:
    """`flowkit run` with one worker. Call `close` in the end."""

    def __init__(self, log: Path, url: str, broker_url: str) -> None:
        settings = {"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": broker_url, "PYTHONPATH": str(ROOT)}
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.host", "run", "tests.fuzz.app:app", "--workers", "1"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._workers: list[int] = []
        self.faults: list[str] = []

    def started(self, ready: Callable[[], bool]) -> None:
        """Wait until its worker is at work."""
        assert wait(ready, START_SECONDS), f"no worker is ready:\n{self._log.read_text()[-3000:]}"
        self._workers = children(self._process.pid)

    def stop(self) -> None:
        """End it in good order, and see that nothing had ended or failed before."""
        if children(self._process.pid) != self._workers or not self._workers:
            self.faults.append("the worker process was replaced")
        self._process.terminate()
        status = self._process.wait(STOP_SECONDS)
        if status:
            self.faults.append(f"flowkit run ended with status {status}")
        lines = self._log.read_text(errors="replace").splitlines()
        found = [number for number, line in enumerate(lines) if DEATH.search(line)]
        if found:
            self.faults.append(f"{len(found)} errors in the log, the first:\n" + "\n".join(lines[found[0] :][:40]))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition. Whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
