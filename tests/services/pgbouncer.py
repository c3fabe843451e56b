"""A private pgbouncer in front of a PostgreSQL server."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.services import free_port
from tests.services.postgresql import PostgreSQL

Mode = Literal["session", "transaction"]

DEADLINE = 30.0
# Ends the pooler when the pipe from the test run closes: however that ends, also by SIGKILL.
GUARDIAN = '"$@" </dev/null & cat >/dev/null; kill -TERM $!; wait $!; rm -rf "$0"'
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {home}/users
admin_users = {user}
pool_mode = {mode}
server_login_retry = 1
"""


def find_binary() -> str | None:
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")


class PgBouncer:
    """One pooler on a port of its own. Not thread-safe. Call `close` in the end."""

    def __init__(self, server: PostgreSQL, mode: Mode) -> None:
        binary = find_binary()
        if binary is None:
            raise FileNotFoundError("pgbouncer is not installed: run tests/services/install")
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix="flowkit-pgbouncer-", dir="/tmp"))
        self._as: dict[str, Any] = {"cwd": self.home, "env": {"PATH": os.defpath}}
        if os.geteuid() == 0:  # which pgbouncer refuses to run as
            user = pwd.getpwnam("nobody")
            os.chown(self.home, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._settings = conninfo_to_dict(server.url("pgbouncer"))
        self._settings["port"] = str(self.port)
        (self.home / "users").write_text('"{user}" "{password}"\n'.format(**self._settings))
        self._configure(server, mode)
        self.log = self.home / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", GUARDIAN, str(self.home), binary, str(self.home / "configuration")],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, **self._as,
            )  # fmt: skip
        end = time.monotonic() + DEADLINE
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                said = self.log.read_text()
                self.close()
                raise TimeoutError(f"pgbouncer does not answer:\n{said}")
            time.sleep(0.02)

    def url(self, database: str) -> str:
        """The URL of a database through the pooler."""
        return "postgresql://{user}:{password}@127.0.0.1:{port}/".format(**self._settings) + database

    def change(self, server: PostgreSQL, mode: Mode) -> None:
        """Go on with another server, or in another mode. The clients keep their connections."""
        self._configure(server, mode)
        self._administer("RELOAD")
        self._administer("RECONNECT")

    def close(self) -> None:
        """Stop and delete everything."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(DEADLINE)

    def _configure(self, server: PostgreSQL, mode: Mode) -> None:
        text = CONFIGURATION.format(
            home=self.home, port=self.port, user=self._settings["user"], server=server.port, mode=mode
        )
        (self.home / "configuration").write_text(text)

    def _administer(self, command: Literal["SHOW VERSION", "RELOAD", "RECONNECT"]) -> None:
        with psycopg.connect(self.url("pgbouncer"), autocommit=True) as connection:
            connection.execute(command)

    def _answers(self) -> bool:
        try:
            self._administer("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True
