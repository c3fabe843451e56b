"""Connections in the clear: beyond loopback they are told of, at the check and at the start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.services.network import Network
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.support import ROOT

APP = """
from flowkit import App

app = App("shop")
app.flow(app.channel("numbers", int), name="take")(lambda number: None)
"""
CLEAR = "is not encrypted, so passwords and messages can be read and changed on the way; add sslmode=verify-full"


@pytest.fixture
def far(postgresql: PostgreSQL, postgresql_url: str) -> Iterator[str]:
    """The database at an address that is not of loopback."""
    try:
        network = Network(0)
    except PermissionError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    try:
        with Proxy("127.0.0.1", postgresql.port, network.machine) as proxy:
            parts = urlsplit(postgresql_url)
            place = f"{network.machine}:{proxy.port}"
            yield parts._replace(netloc=f"{parts.username}:{parts.password}@{place}").geturl()
    finally:
        network.close()


def said(folder: Path, url: str, *arguments: str) -> str:
    """What a command says of a small app."""
    (folder / "app.py").write_text(APP)
    environment = {**os.environ, "FLOWKIT_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flowkit", *arguments]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return run.stdout + run.stderr


@pytest.fixture
def encrypted(postgresql: PostgreSQL) -> Iterator[None]:
    """The server speaks TLS, too."""
    home = postgresql.home
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-keyout", "key.pem", "-out", "cert.pem"], cwd=home, check=True, capture_output=True,
    )  # fmt: skip
    owner = home.stat()
    os.chown(home / "key.pem", owner.st_uid, owner.st_gid)
    os.chown(home / "cert.pem", owner.st_uid, owner.st_gid)
    settings = {"ssl_cert_file": f"'{home}/cert.pem'", "ssl_key_file": f"'{home}/key.pem'", "ssl": "on"}
    with psycopg.connect(postgresql.url("postgres"), autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        connection.execute("SELECT pg_reload_conf()")
        yield
        for name in reversed(settings):
            connection.execute(f"ALTER SYSTEM RESET {name}".encode())
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.processes
def test_postgresql_in_the_clear_is_told_at_the_check_and_at_the_start(
    far: str, postgresql_url: str, tmp_path: Path
) -> None:
    said(tmp_path, postgresql_url, "db", "upgrade")
    assert CLEAR not in said(tmp_path, postgresql_url, "check", "app.py"), "loopback is this machine itself"
    assert CLEAR in (checked := said(tmp_path, far, "check", "app.py"))
    assert "1 warnings" in checked
    started = said(tmp_path, far, "run", "app.py", "--until-idle", "--workers", "1")
    assert started.count(CLEAR) == 1, "once, and not by each worker"
    assert str(urlsplit(far).password) not in checked + started


@pytest.mark.processes
def test_postgresql_by_tls_is_not_told(encrypted: None, far: str, tmp_path: Path) -> None:
    said(tmp_path, far, "db", "upgrade")
    assert "nothing wrong" in said(tmp_path, f"{far}?sslmode=require", "check", "app.py")
    assert CLEAR in said(tmp_path, f"{far}?sslmode=disable", "check", "app.py")


@pytest.mark.parametrize(
    ("url", "management", "told"),
    [
        ("amqp://a:b@127.0.0.1,localhost,[::1]", "http://a:b@localhost:15672", 0),
        ("amqps://a:b@10.0.0.1", "https://a:b@10.0.0.1:15671", 0),
        ("amqp://a:b@127.0.0.1,10.0.0.1", "", 1),
        ("amqp://a:b@broker", "http://a:b@broker:15672", 2),
    ],
)
def test_rabbitmq_in_the_clear_is_told(url: str, management: str, told: int) -> None:
    from flowkit.services import JITTER, SystemClock
    from tests.support.keys import ring

    doubts = RabbitTransport(url, "store", SystemClock(), JITTER, management, keys=ring).doubts({})
    assert len(doubts) == told
    assert all("is not encrypted" in one and "a:***@" in one for one in doubts)
