"""Groups of instances: a spare one takes over from who dies or is silent, and nothing that the old one does counts."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from flowkit.errors import Fenced
from flowkit.host.standby import Standby
from flowkit.message import Message
from flowkit.ports import Copy, Fence, WorkerInfo
from flowkit.services import SystemClock, open_store
from flowkit.settings import Settings
from flowkit.store.sql import SqlStore
from tests.support.instances import SECONDS, Instances, request
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated

FIRST, HOT, WARM = ("--group", "first"), ("--standby", "hot"), ("--standby", "warm")


class Groups(Instances):
    """Instances in groups, each effect of which says which process it is of."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.app = "tests.support.group_app:app"

    def states(self) -> dict[str, str]:
        """state -> the group of the worker that is in it."""
        return {one.state: one.group for one in self.store.ledger.workers()}

    def by(self) -> dict[str, set[int]]:
        """What took effect -> the processes that it is of."""
        found: dict[str, set[int]] = {}
        for name, count in self.applied().items():
            order, pid = name.split()
            assert count == 1
            found.setdefault(order, set()).add(int(pid))
        return found

    def freeze(self, port: int) -> None:
        for pid in self.pids(port):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, port: int) -> None:
        for pid in self.pids(port):
            os.kill(pid, signal.SIGCONT)

    def pids(self, port: int) -> list[int]:
        """The supervisor and its workers."""
        pid = self.running[port].pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.fixture
def groups(database_url: str) -> Iterator[Groups]:
    made = Groups(database_url)
    yield made
    made.close()


def post(port: int, name: str) -> int:
    return request(port, "POST", "/orders", b'{"name": "%s"}' % name.encode())[0]


def refused(port: int) -> bool:
    try:
        request(port, "GET", "/livez")
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.processes
@pytest.mark.parametrize("standby", [HOT, WARM], ids=["hot", "warm"])
def test_a_spare_takes_over_from_who_died_and_who_comes_back_is_spare(groups: Groups, standby: tuple[str, str]) -> None:
    first = groups.start(*FIRST)
    wait_until(lambda: groups.ready(first))
    spare = groups.start(*standby)
    wait_until(lambda: groups.states() == {"ready": "first", "spare": "standby"})
    assert refused(spare)
    assert post(first, "a") == 202
    groups.kill(first)
    wait_until(lambda: groups.ready(spare))
    assert post(spare, "b") == 202
    again = groups.start(*FIRST)
    wait_until(lambda: groups.states() == {"ready": "standby", "spare": "first"})
    assert refused(again)
    wait_until(lambda: set(groups.by()) == {"a", "b"})
    assert groups.end(spare) == 0
    wait_until(lambda: groups.ready(again))
    assert groups.end(again) == 0
    assert groups.store.ledger.workers() == []


@pytest.mark.processes
def test_a_group_that_ends_in_order_is_not_waited_for(groups: Groups) -> None:
    groups.environment["FLOWKIT_GROUP_LEASE"] = "3600"
    first = groups.start(*FIRST)
    beside = groups.start(*FIRST)
    wait_until(lambda: groups.ready(first) and groups.ready(beside))
    assert groups.end(first) == 0
    assert groups.store.groups.standing("front").seconds > 0, "another instance of the group goes on"
    assert groups.end(beside) == 0
    assert groups.store.groups.standing("front").seconds < 0
    second = groups.start("--group", "second")
    wait_until(lambda: groups.ready(second))
    assert post(second, "a") == 202


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.postgresql
def test_an_instance_without_a_group_replaces_a_frozen_one_which_does_not_come_back(postgresql_url: str) -> None:
    with closing(Groups(postgresql_url)) as groups:
        replace_a_frozen_one(groups)


def replace_a_frozen_one(groups: Groups) -> None:
    first = groups.start(*FIRST)
    wait_until(lambda: groups.states() == {"ready": "first"})
    groups.freeze(first)
    wait_until(lambda: groups.store.groups.standing("front").seconds < 0)
    loose = groups.start()
    wait_until(lambda: groups.states() == {"ready": ""})
    groups.thaw(first)
    wait_until(lambda: groups.states() == {"ready": "", "spare": "first"})
    assert post(loose, "a") == 202
    assert groups.end(loose) == 0
    wait_until(lambda: groups.states() == {"ready": "first"})


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_spare_that_was_never_needed_ends_in_order(groups: Groups) -> None:
    first = groups.start(*FIRST)
    wait_until(lambda: groups.ready(first))
    spares = [groups.start(*HOT), groups.start(*WARM), groups.start(*FIRST, "--standby", "hot")]
    wait_until(lambda: sum(one.state == "spare" for one in groups.store.ledger.workers()) == 2)
    wait_until(lambda: groups.ready(spares[2]))  # of the active group
    for port in spares:
        assert groups.end(port) == 0
    assert [one.group for one in groups.store.ledger.workers()] == ["first"]


@pytest.mark.processes
def test_who_was_frozen_and_wakes_up_changes_nothing_and_is_spare(
    postgresql_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    groups = Groups(postgresql_url)
    try:
        first = groups.start(*FIRST, "--workers", "2")
        wait_until(lambda: groups.ready(first))
        spare = groups.start(*HOT)
        wait_until(lambda: groups.states() == {"ready": "first", "spare": "standby"})
        old = groups.pids(first)
        for number in range(50):
            assert post(first, f"a{number}") == 202
        wait_until(lambda: len(groups.by()) == 50)  # or the server had to end its transaction first
        groups.freeze(first)
        wait_until(lambda: groups.ready(spare))
        for number in range(50):
            assert post(spare, f"b{number}") == 202
        wait_until(lambda: len(groups.by()) == 100)
        before = groups.by()
        groups.thaw(first)
        wait_until(lambda: groups.states() == {"ready": "standby", "spare": "first"})
        wait_until(lambda: refused(first))  # its supervisor follows what it knows
        assert post(spare, "c") == 202
        wait_until(lambda: "c" in groups.by())
        assert groups.by() == {**before, "c": groups.by()["c"]}
        assert not groups.by()["c"] & set(old)
    finally:
        groups.close()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.processes
def test_who_is_of_no_group_and_groups_are_not_let_work_beside_each_other(groups: Groups) -> None:
    loose = groups.start()
    wait_until(lambda: groups.ready(loose))
    assert "without a group" in refusal(groups, *HOT)
    assert "without a group" in refusal(groups, *FIRST)
    assert groups.end(loose) == 0
    first = groups.start(*FIRST)
    wait_until(lambda: groups.ready(first))
    assert "group first of app front is active" in refusal(groups)
    assert "--until-idle" in refusal(groups, *HOT, "--until-idle")


def refusal(groups: Groups, *options: str) -> str:
    """What an instance says that is not let start."""
    process = subprocess.run(
        [*groups.command, *options],
        env=groups.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert process.returncode == 2
    return process.stderr


@pytest.fixture
def store(postgresql_url: str) -> Iterator[SqlStore]:
    made = open_store(Settings(database_url=postgresql_url), check=False)
    made.schema.upgrade()
    yield made
    made.close()


def test_many_that_are_the_first_at_once_do_not_hinder_each_other(store: Any) -> None:
    def stand(app: str, group: str) -> str:
        found: str = store.groups.stand(app, group, 60, ready=True).group
        return found

    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            assert len(set(pool.map(partial(stand, f"kit{number}"), ["", "one"] * 4))) == 1, "one of them is active"


def test_a_warm_spare_of_the_active_group_does_not_keep_it_active(store: Any) -> None:
    active = store.groups.stand("kit", "one", 3600, ready=True)
    watch = Standby(store, SystemClock(), WorkerInfo("0000-1", "kit", "host", 1, group="one"), 1, True, takes=False)
    try:
        wait_until(lambda: watch.standing is not None)
        store.groups.step_down("kit", "one", 1)
        wait_until(lambda: watch.over)
    finally:
        watch.close()
    assert store.groups.standing("kit")[:2] == active[:2]


def test_a_takeover_waits_for_a_commit_that_has_begun_and_a_renewal_does_not(store: Any) -> None:
    fence = Fence("kit", "one", store.groups.stand("kit", "one", 0.001, ready=True).token)
    wait_until(lambda: store.groups.standing("kit").seconds < 0)
    taking = threading.Thread(target=store.groups.stand, args=("kit", "two", 60, True))
    with store.unit("") as unit:
        unit.begin()
        store.dialect.fence(unit._cursor, fence.key)
        assert store.groups.stand("kit", "one", 0.001, ready=False).group == "one"
        wait_until(lambda: store.groups.standing("kit").seconds < 0)
        taking.start()
        taking.join(0.5)
        assert taking.is_alive()
        assert store.groups.standing("kit").group == "one"
        unit.commit()
    taking.join(SECONDS)
    assert store.groups.standing("kit").group == "two"


def test_a_commit_waits_for_a_takeover_that_has_begun_and_does_not_happen(store: Any) -> None:
    store.fence = Fence("kit", "one", store.groups.stand("kit", "one", 0.001, ready=True).token)
    wait_until(lambda: store.groups.standing("kit").seconds < 0)
    refused = threading.Event()

    def write() -> None:
        try:
            store.subscribers.add({"kit.flow": "kit.channel"})
        except Fenced:
            refused.set()

    writing = threading.Thread(target=write)
    with store.unit("", fenced=False) as unit:
        unit.begin()
        assert unit.read(
            store.dialect.statements.make_active, (60_000_000, "two", "active:kit", "two", "kit", 60_000_000)
        ) == [(2,)]
        writing.start()
        writing.join(0.5)
        assert writing.is_alive()
        unit.commit()
    writing.join(SECONDS)
    assert refused.is_set()
    assert store.subscribers.channels() == {}


def test_no_takeover_waits_for_rows_that_a_frozen_transaction_holds(store: Any) -> None:
    """What it does not hold is free at once; the rest when the server has ended it, or the lease."""
    store.subscribers.add({"kit.flow": "kit.channel"})
    store.fleet.join(WorkerInfo("0000-1", "kit", "host", 1, group="one"))
    message = Message("1", "kit", "kit.channel", b"{}")
    with store.transaction(fenced=False) as unit:
        unit.stage([Copy(row, message, "kit.flow") for row in ("a", "b")])
    held, other = store.queue.lease("kit.flow", 2, "0000-1", 60)
    store.groups.stand("kit", "one", 0.001, ready=True)
    wait_until(lambda: store.groups.standing("kit").seconds < 0)
    with store.unit("kit.flow") as frozen:
        frozen.begin()
        frozen.remove([(held.row, held.deliveries)])
        frozen.flush()
        taking = threading.Thread(target=store.groups.stand, args=("kit", "two", 60, True))
        taking.start()
        taking.join(SECONDS / 4)
        assert not taking.is_alive()
        assert store.groups.standing("kit").group == "two"
        assert [one.row for one in store.queue.lease("kit.flow", 2, "me", 60)] == [other.row]


class Recorder:
    """Forwards one connection to a server, and keeps each piece that the client sent."""

    def __init__(self, port: int) -> None:
        self.pieces: list[bytes] = []
        self._server = socket.create_connection(("127.0.0.1", port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        self._ends = [client, self._server]
        threading.Thread(target=self._pump, args=(self._server, client, []), daemon=True).start()
        self._pump(client, self._server, self.pieces)

    def _pump(self, source: socket.socket, to: socket.socket, pieces: list[bytes]) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 20):
                pieces.append(piece)
                to.sendall(piece)

    def close(self) -> None:
        for end in (*self._ends, self._listener, self._server):
            end.close()


def test_what_a_commit_locks_and_the_commit_go_out_together(postgresql_url: str, store: Any) -> None:
    """Nobody can be frozen in between, and keep the lock of the lease until he wakes up."""
    address = make_url(postgresql_url)
    assert address.port is not None
    with closing(Recorder(address.port)) as recorder:
        through = address.set(port=recorder.port).render_as_string(hide_password=False)
        with closing(open_store(Settings(database_url=through), check=False)) as recorded:
            recorded.fence = Fence("kit", "one", store.groups.stand("kit", "one", 3600, ready=True).token)
            for number in range(20):
                recorded.subscribers.add({f"kit.flow{number}": "kit.channel"})
        commits = [piece for piece in recorder.pieces if b"COMMIT\0" in piece and not piece.startswith(b"Q")]
    assert len(commits) == 20
    for piece in commits:
        assert b"flowkit_subscriptions" in piece or b"_pg3_" in piece
        assert b"active:kit" in piece
        assert b"S\0\0\0\4" in piece.partition(b"COMMIT\0")[2], "with the end of the pipeline"
