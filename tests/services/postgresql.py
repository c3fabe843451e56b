"""A private PostgreSQL server: real durability, real crashes, nothing left behind."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql

from tests.services import free_port

Mode = Literal["fast", "immediate"]

DEADLINE = 60.0

# Runs beside the server, in a session of its own, until the pipe from the test run closes: however that ends,
# also by SIGKILL. A frozen server obeys only once it is continued.
GUARDIAN = """
cat >/dev/null
if read -r pid <"$0/data/postmaster.pid"; then
    kill -QUIT "$pid"
    kill -CONT "$pid"
    for tenth in $(seq 100); do kill -0 "$pid" || break; sleep 0.1; done
fi
rm -rf "$0"
"""


def find_binaries() -> Path | None:
    """The directory of `postgres` and `initdb`, of the newest version if there are several."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


class PostgreSQL:
    """One server with its data in a temporary directory. Not thread-safe. Call `close` in the end."""

    def __init__(self, primary: "PostgreSQL | None" = None) -> None:
        """`primary`: the server of which this one is a standby, until it is promoted."""
        binaries = find_binaries()
        if binaries is None:
            raise FileNotFoundError("PostgreSQL is not installed: run tests/services/install")
        self._binaries = binaries
        self._server: subprocess.Popen[bytes] | None = None
        self._paused: set[int] = set()
        self._password: str = primary._password if primary else secrets.token_urlsafe(16)
        self.port = free_port()
        # In /tmp: another user can get there, and the path of a socket has 107 bytes at most.
        self.home = Path(tempfile.mkdtemp(prefix="flowkit-postgresql-", dir="/tmp"))
        self.log = self.home / "log"
        self._as: dict[str, Any] = {"cwd": self.home, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            user = _unprivileged()
            os.chown(self.home, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._guardian = subprocess.Popen(
            ["/bin/sh", "-c", GUARDIAN, str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if primary:
                self.follow(primary)
            else:
                self._initialize()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start, and wait until connections are accepted. Does nothing if it runs."""
        if self._server and self._server.poll() is None:
            return
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.home,
            "max_connections": 100,
            # Durability is what is tested: no shortcuts.
            "fsync": "on",
            "synchronous_commit": "on",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.home / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                **self._as,
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text()}") from error
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """The process of the server; its others are children of it."""
        assert self._server is not None
        return self._server.pid

    def stop(self, mode: Mode = "fast") -> None:
        """Stop: "fast" in good order, "immediate" like a crash. Does nothing if it is stopped."""
        if self._server is None:
            return
        self.resume()
        self._server.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        try:
            self._server.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            raise
        finally:
            self._server = None

    def kill(self) -> None:
        """End all its processes at once, with what they had received and not read."""
        assert self._server is not None
        self.pause()
        for pid in self._paused:
            _send(pid, signal.SIGKILL)
        self._paused.clear()
        self._server.wait(DEADLINE)
        self._server = None

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start on the same port."""
        self.stop(mode)
        self.start()

    def pause(self) -> None:
        """Freeze all its processes: connections stay open, and nothing answers."""
        if self._server is None:
            raise RuntimeError("PostgreSQL is not running")
        new = {self._server.pid}
        while new:  # the postmaster may have been starting one more
            for pid in new:
                _send(pid, signal.SIGSTOP)
            self._paused |= new
            new = _children(self._server.pid) - self._paused

    def resume(self) -> None:
        """Go on after `pause`. Does nothing if it is not paused."""
        for pid in self._paused:
            _send(pid, signal.SIGCONT)
        self._paused.clear()

    def follow(self, primary: "PostgreSQL") -> None:
        """Become a standby of another server, with a copy of its data instead of its own. Start it afterwards."""
        shutil.rmtree(self.home / "data", ignore_errors=True)
        server = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "flowkit"]
        copied = subprocess.run(
            [self._binaries / "pg_basebackup", *server, "-D", "data", "-R", "-X", "stream", "-c", "fast", "--no-sync"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._as | {"env": self._as["env"] | {"PGPASSWORD": self._password}},
        )
        if copied.returncode:
            raise RuntimeError(f"pg_basebackup failed:\n{copied.stdout}{copied.stderr}")

    def promote(self) -> None:
        """Make the standby a primary, and wait until it is one."""
        self.execute("SELECT pg_promote()")

    def execute(self, statement: LiteralString) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, and return its rows."""
        with contextlib.closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str = "template1") -> str:
        """Make a database, empty or a copy of one that nobody is connected to, and return its URL."""
        self._administer("CREATE DATABASE {} TEMPLATE {}", name, template)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database and end the connections to it."""
        self._administer("DROP DATABASE {} WITH (FORCE)", name)

    def url(self, database: str, port: int | None = None) -> str:
        """The URL of a database; with `port`, through a proxy."""
        return f"postgresql://flowkit:{self._password}@127.0.0.1:{port or self.port}/{database}"

    def close(self) -> None:
        """Stop and delete everything."""
        try:
            self.stop("immediate")
        finally:
            self._guardian.communicate()  # closes its pipe, and waits until it has removed the directory

    def _initialize(self) -> None:
        secret = self.home / "password"
        secret.write_text(self._password)
        if "user" in self._as:
            os.chown(secret, self._as["user"], self._as["group"])
        options = ["-D", "data", "-U", "flowkit", "--pwfile", "password", "-A", "scram-sha-256", "-E", "UTF8"]
        made = subprocess.run(
            [self._binaries / "initdb", "--locale=C", "--no-sync", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._as,
        )
        secret.unlink()
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")

    def _administer(
        self, statement: Literal["CREATE DATABASE {} TEMPLATE {}", "DROP DATABASE {} WITH (FORCE)"], *names: str
    ) -> None:
        with contextlib.closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _children(parent: int) -> set[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid, ppid in (line.split() for line in listed.splitlines()) if int(ppid) == parent}


def _send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)
