"""Private load balancers: HAProxy and nginx, with the configurations that FlowKit prints."""

import contextlib
import http.client
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.services import free_port

DEADLINE = 30.0
# Ends the balancer when the pipe from the test run closes: however that ends, also by SIGKILL.
GUARDIAN = '"$@" </dev/null & cat >/dev/null; kill -TERM $!; wait $!'
COMMANDS = {
    "haproxy": ("haproxy", "-db", "-f", "{file}"),
    "nginx": ("nginx", "-p", "{home}", "-e", "{home}/errors", "-c", "{file}", "-g", "daemon off; pid {home}/pid;"),
}
CHECKS = {"haproxy": ("haproxy", "-c", "-f", "{file}"), "nginx": (*COMMANDS["nginx"], "-t")}


class Balancer:
    """One balancer on a port of its own. Call `close` in the end."""

    def __init__(self, kind: str) -> None:
        if shutil.which(kind, path="/usr/sbin:/usr/bin") is None:
            raise FileNotFoundError(f"{kind} is not installed: run tests/services/install")
        self._kind = kind
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix=f"flowkit-{kind}-", dir="/tmp"))
        self.log = self.home / "log"

    def configure(self, configuration: str) -> str:
        """Take this configuration, and return what the balancer's own check says against it."""
        (self.home / "configuration").write_text(configuration)
        done = subprocess.run(self._command(CHECKS), check=False, capture_output=True, text=True, timeout=DEADLINE)
        return (done.stdout + done.stderr) if done.returncode else ""

    def start(self) -> None:
        """Start, and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", GUARDIAN, "sh", *self._command(COMMANDS)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + DEADLINE
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise TimeoutError(f"{self._kind} does not answer:\n{self.log.read_text()}")
            time.sleep(0.02)

    def close(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait(DEADLINE)
        shutil.rmtree(self.home, ignore_errors=True)

    def _answers(self) -> bool:
        """Whether an instance answers through it."""
        asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(asking):
            asking.request("GET", "/readyz")
            return asking.getresponse().status == 200
        return False

    def _command(self, of: Mapping[str, Sequence[str]]) -> list[str]:
        return [word.format(home=self.home, file=self.home / "configuration") for word in of[self._kind]]
