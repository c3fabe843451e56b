"""The end of an instance: within its grace, whatever hangs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.host.ending import MARGIN_SECONDS, REST_SECONDS
from flowkit.services import open_store
from flowkit.settings import Settings
from tests.services import free_port
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import RabbitMQ
from tests.support import ROOT
from tests.support.shop import Base
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
GRACE = 2.0
MOST = 3 * (GRACE + MARGIN_SECONDS + REST_SECONDS)
"""What is granted here to a busy machine."""


class Instance:
    """One instance of an app, on services that can be frozen."""

    def __init__(self, url: str, folder: Path, **environment: str) -> None:
        self._environment = {
            **os.environ, "FLOWKIT_DATABASE_URL": url, "CHILDREN_DIR": str(folder), "PYTHONPATH": str(ROOT)
        } | environment  # fmt: skip
        self.store: Any = open_store(Settings(database_url=url), check=False)
        self.store.schema.upgrade()
        Base.metadata.create_all(self.store.dialect.engine)
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "flowkit",
            "run",
            "tests.support.children_app:app",
            "--grace",
            f"{GRACE}s",
            *options,
        ]
        self.process = subprocess.Popen(command, env=self._environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        return self.process

    def ready(self) -> bool:
        return any(one.state in ("ready", "spare") for one in self.store.ledger.workers())

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.store.close()


@pytest.fixture
def instance(postgresql_url: str, tmp_path: Path) -> Iterator[Instance]:
    made = Instance(postgresql_url, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("options", [[], ["--http"], ["--standby", "warm"]], ids=["plain", "http", "warm"])
def test_the_grace_is_kept_while_the_database_is_frozen(
    instance: Instance, postgresql: PostgreSQL, options: list[str]
) -> None:
    if options == ["--http"]:
        options = ["--http", f"127.0.0.1:{free_port()}", "--admin", "none", "--drain", "1s"]
    run = instance.start(*options)
    wait_until(instance.ready)
    postgresql.pause()
    began = time.monotonic()
    run.terminate()
    told = run.communicate(timeout=120)[1]
    taken = time.monotonic() - began
    print(f"{taken:.1f} s with a grace of {GRACE:g} s: exit {run.returncode}\n{told}")
    assert taken < MOST
    assert "did not finish within 2s" in told


def test_the_grace_is_kept_while_the_broker_is_frozen(
    sqlite_url: str, rabbitmq_url: str, rabbitmq_node: RabbitMQ, tmp_path: Path
) -> None:
    made = Instance(sqlite_url, tmp_path, FLOWKIT_BROKER_URL=rabbitmq_url)
    try:
        run = made.start()
        wait_until(made.ready)
        rabbitmq_node.pause()
        began = time.monotonic()
        run.terminate()
        told = run.communicate(timeout=120)[1]
        assert time.monotonic() - began < MOST, told
    finally:
        rabbitmq_node.resume()
        made.close()


def test_a_second_signal_ends_an_instance_while_the_database_is_frozen(
    instance: Instance, postgresql: PostgreSQL
) -> None:
    run = instance.start("--grace", "100s")
    wait_until(instance.ready)
    postgresql.pause()
    began = time.monotonic()
    for _ in range(2):
        run.terminate()
        time.sleep(0.5)  # or the kernel makes one of them
    run.wait(120)
    assert time.monotonic() - began < MOST
    assert run.returncode == 130
