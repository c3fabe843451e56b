"""Real processes that die: rows 1 to 11 of the failures, on both stores, and with a broker between the flows."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit.engine.worker import Worker
from flowkit.host import supervisor as supervising
from flowkit.host.supervisor import Supervisor
from flowkit.services import Services, SystemClock, connect, open_store
from flowkit.settings import Settings
from tests.conftest import PROOF
from tests.support import ROOT, crash_app
from tests.support.shop import Base, Order, effects

pytestmark = [pytest.mark.migrated, pytest.mark.processes, pytest.mark.timeout(1800 if PROOF else 300)]
APP = str(ROOT / "tests" / "support" / "crash_app.py")
WAITS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'"""


class Fleet:
    """Worker processes of the crash app on one store, and perhaps a broker, supervised by the test."""

    def __init__(
        self, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str = "", **settings: Any
    ) -> None:
        self.broker = bool(broker_url)
        self.folder = folder
        folder.mkdir()
        store = open_store(Settings(database_url=url), check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        monkeypatch.setenv("FLOWKIT_DATABASE_URL", url)
        monkeypatch.setenv("FLOWKIT_BROKER_URL", broker_url)
        monkeypatch.setenv("CRASH_DIR", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        for name, value in settings.items():
            monkeypatch.setenv(f"FLOWKIT_{name.upper()}", str(value))
        monkeypatch.setattr(supervising, "FIRST_BACKOFF_SECONDS", 0.01)
        monkeypatch.setattr(supervising, "MOST_BACKOFF_SECONDS", 0.01)
        self.settings = Settings(database_url=url, broker_url=broker_url)
        self.services: Services = connect(self.settings)
        self.store: Any = self.services.store
        self.app = crash_app.app
        self.app.connect(self.services)
        self.died: Counter[int] = Counter()

    def supervise(self, workers: int = 2, *flows: str) -> Supervisor:
        command = [sys.executable, "-m", "flowkit", "run", APP, *(["--flows", ",".join(flows)] if flows else [])]
        supervisor = Supervisor(command, workers, self.store, SystemClock(), random.random)
        bury = supervisor._bury

        def note(child: Any, now: float) -> None:
            self.died[child.process.returncode] += 1
            bury(child, now)

        supervisor._bury = note  # type: ignore[method-assign]
        return supervisor

    def publish(self, *names: str, deed: str = "", channel: Any = crash_app.orders) -> None:
        self.app.publish_many(channel, [Order(name=name, deed=deed) for name in names])

    def pending(self) -> int:
        """Messages that are not at their end. What is at the broker is in no row: the ledger knows of it."""
        return int(self.store.ledger.unfinished(list(self.app.flows)))

    def empty(self) -> bool:
        """Whether nothing is left to do, and no row of what is done."""
        return bool(self.pending() == 0 == sum(self.store.ledger.pending(list(self.app.flows))) == self.at_broker())

    def at_broker(self) -> int:
        """Messages that wait at the broker. All may be applied: what a dying relay published twice is there twice."""
        return sum(self.services.transport.depths(list(self.app.flows)).values())

    def settle(self) -> None:
        """Have done what stopped workers gave back unseen: duplicates, or the effects will tell. What a worker has in
        hand is not at the broker, so that one in this thread does it, whose steps tell when it has nothing more."""
        while self.at_broker():
            services = connect(self.settings)
            worker = Worker(self.app, services)
            while worker.step() or self.at_broker():
                pass
            worker.close()
            services.close()

    def waits(self) -> bool:
        """Whether somebody waits for what another one has claimed in a transaction that is open."""
        if self.store.dialect.name == "sqlite":
            return False
        with self.store.unit("") as unit:
            return bool(unit.read(WAITS) != [(0,)])

    def ready(self) -> int:
        """Workers that said they are ready."""
        return sum(worker.state == "ready" for worker in self.store.ledger.workers())

    def effects(self) -> dict[str, int]:
        with Session(self.store.dialect.engine) as session:
            return effects(session)

    def check(self) -> None:
        """Nothing lost, nothing twice, nothing left at the broker, and the database is whole."""
        self.settle()
        assert {name: count for name, count in self.effects().items() if count != 1} == {}
        for flow, balance in self.store.ledger.balances().items():
            assert balance.balanced, f"{flow}: {balance}"
            assert balance.pending == 0, f"{flow}: {balance}"
        if self.store.dialect.name == "sqlite":
            with self.store.unit("") as unit:
                assert unit.read("PRAGMA integrity_check") == [("ok",)]


@contextmanager
def stepping(supervisor: Supervisor) -> Iterator[Callable[[Callable[[], bool], float], None]]:
    """Step the supervisor until a condition holds; stop its workers in the end."""

    def until(condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not come true in time"
            supervisor.step()
            time.sleep(0.01)

    try:
        yield until
        supervisor.stop()
        until(lambda: not supervisor.step(), 60)
    finally:
        supervisor.kill()
        while supervisor.pids:
            supervisor.stopping = True
            supervisor.step()
        supervisor.close()


HEARTBEAT_SECONDS = 2


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("rabbitmq", marks=[pytest.mark.postgresql, pytest.mark.rabbitmq]),
    ]
)
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A fresh database of each kind, without and with a broker."""
    if request.param == "rabbitmq":
        broker = request.getfixturevalue("rabbitmq_url")
        return request.getfixturevalue("postgresql_url"), f"{broker}?heartbeat={HEARTBEAT_SECONDS}"
    return request.getfixturevalue(f"{request.param}_url"), ""


@pytest.fixture
def fleet(
    urls: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Fleet]:
    made = Fleet(urls[0], tmp_path / "kills", monkeypatch, urls[1], **getattr(request, "param", {}))
    yield made
    made.services.close()


TIMES, ROUNDS = (4, 5) if PROOF else (2, 1)
"""Kills at each place in a round. More of them at once would use up the attempts of a message."""


def test_row_1_killed_at_every_step(fleet: Fleet) -> None:
    steps = [*crash_app.STEPS, "lane", *(crash_app.BROKER_STEPS if fleet.broker else ())]
    places = [f"{step}.{when}" for step in steps for when in ("before", "after")]
    places += ["inside.accept", "inside.pass"]
    kills = [f"{place}.{number}" for place in places for number in range(TIMES)]
    sent = 0

    def done() -> bool:
        nonlocal sent
        left = [file for file in fleet.folder.iterdir() if file.name != "runs"]
        pending = fleet.pending()
        if left and pending < 50:
            fleet.publish(*(str(number) for number in range(sent, sent + 100)))
            sent += 100
        return not left and pending == 0

    with stepping(fleet.supervise(2)) as until:
        for _ in range(ROUNDS):
            for kill in kills:
                (fleet.folder / kill).touch()
            until(done, 480)
        until(fleet.empty, 60)
    assert fleet.died[-signal.SIGKILL] == len(kills) * ROUNDS, fleet.died
    fleet.check()
    assert set(fleet.effects()) == {f"{flow} {number}" for flow in ("accept", "invoice") for number in range(sent)}
    runs = (fleet.folder / "runs").read_text().splitlines()
    assert len(runs) > sent, "no message was delivered again: the kills hit nothing"


POISONS = 5 if PROOF else 1


@pytest.mark.parametrize("status", [9, 0], ids=["crash", "exit-0"])
def test_row_2_a_poison_message_takes_no_innocent_with_it(fleet: Fleet, status: int) -> None:
    fleet.publish(*(str(number) for number in range(50)), channel=crash_app.poison)
    fleet.publish(*["poison"] * POISONS, deed=str(status), channel=crash_app.poison)
    fleet.publish(*(str(number) for number in range(50, 100)), channel=crash_app.poison)
    with stepping(fleet.supervise(2)) as until:
        until(fleet.empty, 240)
    assert fleet.died[status] >= 1 + 5 * POISONS, "one death makes it a suspect, five alone use up its attempts"
    fleet.check()
    assert set(fleet.effects()) == {f"drink {number}" for number in range(100)}
    letters = fleet.store.dead_letters.read(fleet.store.dead_letters.select())
    assert [(one.reason, one.attempts) for one in letters] == [("crashed", 5)] * POISONS
    assert all(b"poison" in one.message.body for one in letters)


@pytest.mark.parametrize("fleet", [{"lease": 1}], indirect=True)
def test_row_2_who_takes_the_supervisor_along_is_found_too(fleet: Fleet) -> None:
    """Nobody is left to tell what ran when the host died. What was handed out again and again runs in ever smaller
    company, in the end alone."""
    fleet.publish(*(str(number) for number in range(50)), channel=crash_app.poison)
    fleet.publish("poison", deed="host", channel=crash_app.poison)
    fleet.publish(*(str(number) for number in range(50, 100)), channel=crash_app.poison)
    deaths = 0
    while True:
        host = subprocess.Popen([sys.executable, "-m", "flowkit", "run", APP, "--flows", "drink"], cwd=ROOT)
        end = time.monotonic() + 120
        while host.poll() is None and not fleet.empty():
            assert time.monotonic() < end, "the host neither died nor finished"
            time.sleep(0.05)
        if host.poll() is None:
            host.terminate()
            assert host.wait(60) == 0
            break
        deaths += 1
        assert deaths < 30, "it kills the host for ever"
    fleet.check()
    assert set(fleet.effects()) == {f"drink {number}" for number in range(100)}
    (letter,) = fleet.store.dead_letters.read(fleet.store.dead_letters.select())
    assert (letter.reason, letter.attempts) == ("crashed", 5)
    print(f"{deaths} deaths")
    assert deaths >= 5 + 5, "five alone, and those before in ever smaller company"


@pytest.mark.parametrize("fleet", [{"lease": 1}], indirect=True)
def test_row_3_a_paused_worker_that_wakes_changes_nothing(fleet: Fleet) -> None:
    supervisor = fleet.supervise(2)
    least, sent, met, again = (10 if fleet.broker else 45) if PROOF else 3, 0, 0, 0
    # Longer than its lease, or than the broker waits for heartbeats. The transaction's timeout need not have passed:
    # the inbox holds in every case.
    longest = 4 * HEARTBEAT_SECONDS if fleet.broker else 2.5
    with stepping(supervisor) as until:
        until(lambda: fleet.ready() == 2, 60)
        for pause in range(least + 20):
            if pause >= least and again + met:
                break
            before = len(fleet.effects())
            fleet.publish(*(str(number) for number in range(sent, sent + 100)), deed="sleep")
            sent += 100
            until(lambda: len(fleet.effects()) > before, 60)  # noqa: B023
            pid = supervisor.pids[pause % 2]
            os.kill(pid, signal.SIGSTOP)
            paused = time.monotonic()
            until(lambda: fleet.waits() or fleet.pending() == 0 or time.monotonic() - paused > longest, 30)  # noqa: B023
            met += fleet.waits()
            os.kill(pid, signal.SIGCONT)
            until(lambda: fleet.pending() == 0, 60)
            again = len((fleet.folder / "runs").read_text().splitlines()) - sent
        until(fleet.empty, 120)
    fleet.check()
    assert len(fleet.effects()) == 2 * sent
    print(f"{again} messages ran again while their worker was paused, and {met} times others waited for its claims")
    assert again + met, "nothing was delivered again: the pauses hit nothing"


def test_row_6_all_workers_die_at_once_and_others_drain(fleet: Fleet) -> None:
    fleet.publish(*(str(number) for number in range(400)), deed="sleep")
    first = fleet.supervise(2)
    try:
        while len(fleet.effects()) < 20:
            first.step()
            time.sleep(0.01)
        first.stopping = True
        for pid in first.pids:
            os.kill(pid, signal.SIGKILL)
        while first.pids:
            for child in first._children:
                if child.process is not None and child.process.poll() is not None:
                    child.process = None  # the supervisor died too: nobody tells who was running
    finally:
        first.close()
    assert fleet.pending() > 0
    began = time.monotonic()
    with stepping(fleet.supervise(2)) as until:
        before = len(fleet.effects())
        until(lambda: len(fleet.effects()) > before, 60)
        print(f"takeover after {time.monotonic() - began:.2f} s, the start of the workers included")
        until(fleet.empty, 120)
    fleet.check()
    assert len(fleet.effects()) == 800


def test_row_7_rolling_restarts_run_nothing_again(fleet: Fleet) -> None:
    restarts, sent = 50 if PROOF else 4, 0
    for _ in range(restarts):
        if fleet.pending() < 250:
            fleet.publish(*(str(number) for number in range(sent, sent + 500)), deed="sleep")
            sent += 500
        supervisor = fleet.supervise(2)
        with stepping(supervisor) as until:
            before = len(fleet.effects())
            until(lambda: fleet.ready() == 2 and len(fleet.effects()) > before + 20, 60)  # noqa: B023
    with stepping(fleet.supervise(2)) as until:
        until(lambda: fleet.ready() == 2 and fleet.empty(), 120)
    assert set(fleet.died) == {0}, "every worker ended in order"
    fleet.check()
    runs = Counter((fleet.folder / "runs").read_text().splitlines())
    assert {run: count for run, count in runs.items() if count != 1} == {}
    assert len(runs) == sent


def test_row_10_a_handler_that_never_returns_is_replaced(fleet: Fleet) -> None:
    fleet.publish("stuck", deed="hang", channel=crash_app.hanging)
    fleet.publish(*(str(number) for number in range(100)))
    with stepping(fleet.supervise(2)) as until:
        until(fleet.empty, 120)
    assert fleet.died[supervising.REPLACE] == 2, fleet.died
    fleet.check()
    assert len(fleet.effects()) == 200
    (letter,) = fleet.store.dead_letters.read(fleet.store.dead_letters.select())
    assert (letter.reason, letter.attempts) == ("crashed", 2)


def test_row_11_a_worker_does_not_grow_with_the_backlog(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(sqlite_url, tmp_path / "kills", monkeypatch)
    fleet.publish(*(str(number) for number in range(15000)))
    sizes: list[int] = []
    supervisor = fleet.supervise(1)
    with stepping(supervisor) as until:

        def done() -> bool:
            if supervisor.pids:
                sizes.append(resident(supervisor.pids[0]))
            return fleet.pending() == 0

        until(done, 120)
    fleet.check()
    fleet.services.close()
    middle = sizes[len(sizes) // 2]
    print(f"resident: {middle / 1e6:.0f} MB in the middle, {max(sizes) / 1e6:.0f} MB at most")
    assert max(sizes) < 120e6
    assert sizes[-1] < middle * 1.15


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_the_command_line_runs_until_idle_and_forwards_signals(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(sqlite_url, tmp_path / "kills", monkeypatch)
    fleet.publish(*(str(number) for number in range(100)))
    command = [sys.executable, "-m", "flowkit", "run", APP, "--workers", "2"]
    subprocess.run([*command, "--until-idle"], check=True, timeout=60, cwd=ROOT)
    fleet.check()
    assert len(fleet.effects()) == 200
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        end = time.monotonic() + 60
        while len([one for one in fleet.store.ledger.workers() if one.state == "ready"]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert fleet.store.ledger.workers() == []
    fleet.services.close()
