"""A test bed: instances of an app behind a real HAProxy, to measure their capacity and to break them on purpose."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Self

from flowkit.errors import ConfigError, FlowKitError
from flowkit.host.supervisor import COMMAND
from flowkit.web import balancer

START_SECONDS = 60.0
END_SECONDS = 60.0
LOOK_SECONDS = 0.02
HOST = "127.0.0.1"


class Node:
    """One instance: a supervisor and its workers, which serve HTTP on their own port."""

    def __init__(
        self, app: str, options: Sequence[str] = (), environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`options`: those of `flowkit run`. `environment`: variables added to this process's."""
        self._app = app
        self._options = tuple(options)
        self._environment = {**os.environ, **environment}
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the instance. Does not wait until it is ready."""
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, "run", self._app, "--http", f"{HOST}:{self.port}", "--admin", "none", *self._options],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id of its supervisor; 0 while the instance does not run."""
        return self._process.pid if self._process is not None else 0

    @property
    def ready(self) -> bool:
        """Whether the instance is ready for requests. Blocks. Raises FlowKitError if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise FlowKitError(f"an instance of {self._app} ended with status {self._process.returncode}: see above")
        return _answers(self.port, "/readyz")

    def kill(self) -> None:
        """Kill all of its processes at once, as if its host died. Blocks until the supervisor is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop all of its processes, as if its host swapped or migrated."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Shut the instance down cleanly, by SIGTERM. Blocks. Raises FlowKitError if its exit status is not 0."""
        if self._process is not None:
            self._process.terminate()
            status = self._process.wait(END_SECONDS)
            self._process = None
            if status:
                raise FlowKitError(f"an instance of {self._app} ended with status {status}: see above")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # Workers are in their own sessions, so a process group does not reach them.
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            for pid in (self._process.pid, *map(int, children)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


class Testbed:
    """Nodes behind HAProxy, with the configuration that `flowkit lb haproxy` prints. A context manager."""

    def __init__(self, nodes: Sequence[Node], ready: int | None = None) -> None:
        """`ready`: number of nodes to wait for on entry; None: all. Raises ConfigError if HAProxy is not installed."""
        program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise ConfigError("HAProxy is not installed; install it: apt-get install haproxy")
        self._program = program
        self.nodes = nodes
        self._ready = len(nodes) if ready is None else ready
        self.port = _free_port()
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for node in self.nodes:
                opened.callback(node.kill)
                node.start()
            wait_until(lambda: sum(node.ready for node in self.nodes) >= self._ready, "the instances are not ready")
            self._balance(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def _balance(self, opened: ExitStack) -> None:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="flowkit-site-")))
        instances = [balancer.Instance(HOST, node.port) for node in self.nodes]
        configuration = home / "haproxy.cfg"
        configuration.write_text(balancer.haproxy(instances, f"{HOST}:{self.port}", None))
        process = subprocess.Popen(  # noqa: S603 - HAProxy
            [self._program, "-db", "-q", "-f", str(configuration)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        opened.callback(process.wait)
        opened.callback(process.terminate)
        wait_until(lambda: _answers(self.port, "/readyz"), "HAProxy does not answer")


def wait_until(condition: Callable[[], bool], otherwise: str, seconds: float = START_SECONDS) -> None:
    """Wait until a condition is true. Blocks. Raises FlowKitError with the text `otherwise` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise FlowKitError(f"{otherwise} after {seconds:g} s")
        time.sleep(LOOK_SECONDS)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=START_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as one:
        return int(one.getsockname()[1])
