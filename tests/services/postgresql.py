"""A private PostgreSQL: free port, temporary data, durable as in production, ended with the tests."""

import contextlib
import ctypes
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

START_SECONDS = 60


def binaries() -> Path | None:
    """The folder of the server's binaries, the newest version's; None where it is not installed."""
    for candidate in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True):
        if (Path(candidate) / "initdb").exists():
            return Path(candidate)
    found = shutil.which("initdb")
    return Path(os.path.realpath(found)).parent if found else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Run in the child before it becomes the server: a killed test run leaves no server behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


class PostgreSQL:
    """One server process. `url(name)` makes a database."""

    def __init__(self) -> None:
        self._bin = binaries()
        if self._bin is None:
            raise FileNotFoundError("PostgreSQL's initdb is not installed; run: make services")
        self.port = free_port()
        self._password = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="flowkit-postgresql-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        password_file = self.folder / "password"
        password_file.write_text(self._password)
        password_file.chmod(0o644)
        self._run(
            "initdb", "-D", str(self._data), "-U", "flowkit", "-A", "scram-sha-256", f"--pwfile={password_file}", "-N"
        )

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._binary("postgres")), "-D", str(self._data), "-p", str(self.port), "-k", str(self.folder),
                    "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100", "-c", "fsync=on",
                    "-c", "synchronous_commit=on", "-c", "log_min_messages=warning",
                ],
                stdout=log, stderr=log, cwd="/", preexec_fn=die_with_parent, **self._as_user(),
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while self._ready() != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT ends connections in order (fast), SIGQUIT at once, as a crash (immediate)."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def url(self, name: str, port: int | None = None) -> str:
        """The URL of a database, on another port if a proxy stands before it. The database is made when missing."""
        if port is None:
            with contextlib.suppress(subprocess.CalledProcessError):
                self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "flowkit", name)
        return f"postgresql://flowkit:{self._password}@127.0.0.1:{port or self.port}/{name}"

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _binary(self, name: str) -> Path:
        assert self._bin is not None
        return self._bin / name

    def _as_user(self) -> dict[str, Any]:
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []} if self._user else {}

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binary(name)), *arguments], check=True, capture_output=True, cwd="/",
            env={**os.environ, "PGPASSWORD": self._password}, **self._as_user(),
        )  # fmt: skip

    def _ready(self) -> int:
        command = [str(self._binary("pg_isready")), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        return subprocess.run(command, check=False).returncode
