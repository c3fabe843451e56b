"""A private RabbitMQ node: real quorum queues, real crashes, nothing left behind."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from tests.services import free_port
from tests.services.network import Place

DEADLINE = 120.0
HELLO = b"AMQP\x00\x00\x09\x01"
"""The protocol header; a broker that is up answers it."""
PORT, MAPPER = 5672, 4369
"""Those that are RabbitMQ's own, for a node that has its host for itself."""
PATHS = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")

# Runs beside the node, in a session of its own, until the pipe from the test run closes: however that ends, also by
# SIGKILL. The node's processes are a group; its port mapper is a daemon that ends by its own command.
GUARDIAN = """
cat >/dev/null
if read -r pid <"$0/pid"; then
    kill -CONT "-$pid"
    kill -KILL "-$pid"
fi
for tenth in $(seq 100); do epmd -port "$1" -kill | grep -q Killed && break; sleep 0.1; done
rm -rf "$0"
"""


def find_binaries() -> Path | None:
    """The directory of the scripts that run as the calling user; `/usr/sbin` has some that change the user."""
    for path in PATHS:
        if (Path(path) / "rabbitmq-server").exists() and shutil.which("epmd"):
            return Path(path)
    return None


class RabbitMQ:
    """One node with its data in a temporary directory. Not thread-safe. Call `close` in the end."""

    def __init__(self, settings: str = "", plugins: str = "", place: Place | None = None, secret: str = "") -> None:
        """`settings`: more lines of its configuration file; `plugins`: those to enable, separated by commas; `place`:
        its host in a private network; `secret`: what lets clients and the other nodes of a cluster in."""
        binaries = find_binaries()
        if binaries is None:
            raise FileNotFoundError("RabbitMQ is not installed: run tests/services/install")
        self._binaries = binaries
        self._server: subprocess.Popen[bytes] | None = None
        self._password = secret or secrets.token_urlsafe(16)
        self.host = place.outside if place else "127.0.0.1"
        self.port = PORT if place else free_port()
        self.name = f"flowkit@{place.inside}" if place else f"flowkit{self.port}@localhost"
        mapper = MAPPER if place else free_port()  # all nodes of a cluster ask for each other at the same port
        self._within = ("ip", "netns", "exec", place.namespace) if place else ()
        self.home = Path(tempfile.mkdtemp(prefix="flowkit-rabbitmq-", dir="/tmp"))
        self.log = self.home / "log"
        (self.home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {self.host}:{self.port}\n"
            f"default_user = flowkit\ndefault_pass = {self._password}\n"
            "default_user_tags.administrator = true\n"
            "disk_free_limit.absolute = 50MB\nlog.console = false\nlog.file.level = warning\n" + settings
        )
        (self.home / "plugins").write_text(f"[{plugins}].\n")
        (self.home / ".erlang.cookie").touch(0o600)
        (self.home / ".erlang.cookie").write_text(self._password)
        self._environment = {
            "PATH": os.defpath,
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": place.inside if place else "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true" if place else "false",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_BASE": str(self.home),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.home / "data"),
            "RABBITMQ_LOG_BASE": str(self.home / "logs"),
            "RABBITMQ_PID_FILE": str(self.home / "node-pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        self._guardian = self._guard(mapper)

    def _guard(self, mapper: int) -> "subprocess.Popen[bytes]":
        """Start the process that ends the node and removes its folder when this process is gone."""
        return subprocess.Popen(
            [*self._within, "/bin/sh", "-c", GUARDIAN, str(self.home), str(mapper)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": os.defpath},
        )

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start, and wait until clients are let in. Does nothing if it runs."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Start, and do not wait. Does nothing if it runs."""
        if self.runs:
            return
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [*self._within, self._binaries / "rabbitmq-server"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
            )
        (self.home / "pid").write_text(f"{self._server.pid}\n")

    def wait(self) -> None:
        """Wait until clients are let in."""
        deadline = time.monotonic() + DEADLINE
        while not self.answers():
            if not self.runs or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start:\n{self.said()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once: what was not synced to disk is gone. Does nothing if it is stopped.

        RabbitMQ 3.10 syncs which quorum queue owns which log only every three minutes, and a younger queue would have
        lost its log. That is the broker's loss of its disk, which is another test's matter.
        """
        if self._server is not None:
            if self.answers():
                self.evaluate("dets:sync(ra_directory_reverse).")
            self._send(signal.SIGKILL)
            self._server.wait(DEADLINE)
            self._server = None

    def restart(self) -> None:
        """Kill it, and start on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing answers."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._send(signal.SIGCONT)

    def answers(self) -> bool:
        """Whether clients are let in."""
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as client:
                client.sendall(HELLO)
                return client.recv(1) == b"\x01"
        except OSError:
            return False

    def said(self) -> str:
        """The last that it wrote to its logs."""
        return "\n".join(log.read_text()[-5000:] for log in (self.log, *(self.home / "logs").glob("*.log")))

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl`, and return what it printed. Takes about two seconds, most of them to start Erlang."""
        ran = self._run([self._binaries / "rabbitmqctl", "-q", *arguments])
        if ran.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed:\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def evaluate(self, expression: str) -> str:
        """What an expression of Erlang, with its full stop, comes to inside of the node. Takes milliseconds."""
        kind = "-name" if self._within else "-sname"
        ran = self._run(["erl_call", "-R", kind, self.name, "-timeout", f"{DEADLINE:.0f}", "-e"], f"{expression}\n")
        if ran.returncode or not ran.stdout.startswith("{ok, "):
            raise RuntimeError(f"{self.name} did not evaluate {expression}\n{ran.stdout}{ran.stderr}")
        return ran.stdout.removeprefix("{ok, ").removesuffix("}")

    def management_url(self, port: int, password: str = "") -> str:
        """The URL of its management API, if it has that plugin on this port."""
        return f"http://flowkit:{password or self._password}@127.0.0.1:{port}"

    def url(self, port: int | None = None, user: str = "flowkit", password: str = "", vhost: str = "/") -> str:
        """The URL of a virtual host; with `port`, through a proxy."""
        login = f"{user}:{password or self._password}"
        return f"amqp://{login}@{self.host}:{port or self.port}/{quote(vhost, safe='')}"

    def close(self) -> None:
        """Stop and delete everything."""
        try:
            if self._server is not None:
                self._send(signal.SIGKILL)
                self._server.wait(DEADLINE)
        finally:
            self._guardian.communicate()  # closes its pipe, and waits until it has removed the directory

    def _run(self, command: Sequence[str | Path], said: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a program where the node is."""
        return subprocess.run(
            [*self._within, *command],
            env=self._environment,
            input=said,
            capture_output=True,
            text=True,
            check=False,
        )

    def _send(self, what: signal.Signals) -> None:
        assert self._server is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, what)
