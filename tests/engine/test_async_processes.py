"""`async def` handlers in real worker processes: who is blamed for a death, who is not, and how a worker ends."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings
from tests.support import ROOT, async_app
from tests.support.shop import Base, Order, effects

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


class Network:
    """The async app on a database, and its workers as `flowkit run` starts them."""

    def __init__(self, url: str, folder: Path, broker: str = "") -> None:
        store = open_store(Settings(database_url=url), check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self.runs = folder / "runs"
        self.runs.touch()
        self._environment = {
            **os.environ,
            "FLOWKIT_DATABASE_URL": url,
            "FLOWKIT_BROKER_URL": broker,
            "CRASH_DIR": str(folder),
            "PYTHONPATH": str(ROOT),
        }
        self.services: Services = connect(Settings(database_url=url, broker_url=broker))
        self.store: Any = self.services.store
        async_app.app.connect(self.services)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flowkit", "run", str(ROOT / "tests" / "support" / "async_app.py"), *options]
        self.process = subprocess.Popen(command, env=self._environment)
        return self.process

    def publish(self, count: int, **deeds: str) -> None:
        """Orders 0 to count - 1; `_7="crash"` names the deed of number 7."""
        orders = [Order(name=str(number), deed=deeds.get(f"_{number}", "")) for number in range(count)]
        async_app.app.publish_many(async_app.orders, orders)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not come true in time: {self.store.ledger.balances()}"
            time.sleep(0.02)

    def done(self) -> bool:
        """Whether every message is at its end, and no row is left of what the broker took."""
        flows = list(async_app.app.flows)
        return bool(self.store.ledger.unfinished(flows) == 0 == sum(self.store.ledger.pending(flows)))

    def ran(self) -> Counter[str]:
        return Counter(self.runs.read_text().split())

    def check(self, count: int, *dead: int) -> None:
        """All but the dead took effect once, and no innocent was charged an attempt."""
        with Session(self.store.dialect.engine) as session:
            assert effects(session) == {str(number): 1 for number in range(count) if number not in dead}
        letters = self.store.dead_letters.read(self.store.dead_letters.select())
        assert sorted(async_app.orders.body.decode(one.message.body).name for one in letters) == [str(n) for n in dead]
        with self.store.unit("") as unit:
            charged = unit.read("SELECT count(*) FROM flowkit_inbox WHERE attempts > 0 AND state = 1")
        assert charged == [(0,)], "an innocent was charged"
        for flow, balance in self.store.ledger.balances().items():
            assert balance.balanced, f"{flow}: {balance}"

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        async_app.app.close()


@pytest.fixture
def network(postgresql_url: str, tmp_path: Path) -> Iterator[Network]:
    made = Network(postgresql_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def broker_network(postgresql_url: str, rabbitmq_url: str, tmp_path: Path) -> Iterator[Network]:
    made = Network(postgresql_url, tmp_path, rabbitmq_url)
    yield made
    made.close()


@pytest.mark.parametrize("deed", ["crash", "crash in a thread", "crash in its work", "killed in its work"])
def test_row_2_who_kills_the_process_is_dead_alone(network: Network, deed: str) -> None:
    network.publish(120, _30=deed)
    network.start("--workers", "1")
    network.until(network.done)
    network.check(120, 30)


def test_row_2_on_rabbitmq(broker_network: Network) -> None:
    broker_network.publish(120, _30="crash")
    broker_network.start("--workers", "1")
    broker_network.until(broker_network.done)
    broker_network.check(120, 30)


def test_row_10_who_blocks_the_loop_is_found_and_the_others_go_on(network: Network) -> None:
    network.publish(60, _30="block")
    network.start("--workers", "1")
    network.until(network.done)
    network.check(60, 30)


def test_a_killed_worker_leaves_no_suspects(network: Network) -> None:
    network.publish(50, **{f"_{number}": "wait" for number in range(50)})
    network.start()
    network.until(lambda: len(network.ran()) == 50)
    [worker] = network.store.ledger.workers()
    os.kill(worker.pid, signal.SIGKILL)
    network.until(network.done, 20)  # one after the other they would take 50 s
    network.check(50)
    assert set(network.ran().values()) == {2}


def test_row_7_what_has_begun_is_finished_at_sigterm(network: Network) -> None:
    network.publish(100, **{f"_{number}": "wait" for number in range(100)})
    worker = network.start()
    network.until(lambda: len(network.ran()) == 50)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert len(network.ran()) == 50, "nothing more was begun"
    assert network.store.ledger.balances()["network.fetch"].applied == 50
    network.start()
    network.until(network.done)
    network.check(100)
    assert set(network.ran().values()) == {1}, "nothing that had begun was run again"


def test_row_7_what_cannot_finish_in_time_is_given_back_and_is_no_attempt(network: Network) -> None:
    network.publish(50, **{f"_{number}": "wait" for number in range(50)})
    worker = network.start("--grace", "0.2s")
    network.until(lambda: len(network.ran()) == 50)
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    network.start()
    network.until(network.done)
    network.check(50)
    assert set(network.ran().values()) == {2}
