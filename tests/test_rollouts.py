"""Versions side by side: a share of the keys each, none of them at both, and nothing lost when a version goes."""

import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import Session

from flowkit import Channel, Message, Reject, UnitOfWork
from flowkit.cli import rollout
from flowkit.engine.versions import bucket
from flowkit.engine.worker import Worker
from flowkit.errors import CommitUnknown, ConfigError, StoreConflict, StoreUnavailable
from flowkit.operations import ramp, rollouts
from flowkit.operations.comparison import Plan
from flowkit.ports import CANDIDATE, Delivery, Rollout, WorkerInfo
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.store.fleet import Fleet
from tests.services.balancer import Balancer
from tests.shop import FAST, Base, Effect, Order, effects, new_app
from tests.test_web_processes import ROOT, SECONDS, Clients, Instances, before, until

pytestmark = pytest.mark.migrated

FLOW = "shop.take"
ROUNDS = 2_000
"""More than any test needs."""


class Version:
    """A version of the app with a worker, stepped by hand. Its effects say which version they are of."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        handle: Callable[[Order, Message], None],
        concurrent: bool = False,
        kind: Any = Order,
    ) -> None:
        self.app, self.name = new_app(), name
        self.orders = self.app.channel("orders", kind)

        def take(order: Order, message: Message, db: Session) -> None:
            handle(order, message)
            db.add(Effect(name=f"{order.name} {name}"))

        take.__annotations__["order"] = kind

        async def take_at_once(order: Order, message: Message, work: UnitOfWork) -> None:
            await work.run(lambda db, outbox: take(order, message, db))

        self.app.flow(self.orders, name="take", retry=FAST)(take_at_once if concurrent else take)
        self.services = connect(settings.model_copy(update={"version": name}))
        self.worker = Worker(self.app, self.services)
        self.worker.readiness.state = "ready"

    def step(self) -> bool:
        self.worker.maintenance._beaten = self.worker.maintenance._looked = float("-inf")
        return self.worker.step()

    def close(self) -> None:
        self.worker.close()
        self.services.close()


class Versions:
    """Versions on one store."""

    def __init__(self, database_url: str, broker_url: str) -> None:
        self.settings = Settings(database_url=database_url, broker_url=broker_url)
        self.store: Any = open_store(self.settings, check=False)
        self.store.schema.upgrade()
        Base.metadata.create_all(self.store.dialect.engine)
        self.running: list[Version] = []

    def start(
        self,
        name: str,
        handle: Callable[[Order, Message], None] = lambda order, message: None,
        concurrent: bool = False,
        kind: Any = Order,
    ) -> Version:
        self.running.append(made := Version(self.settings, name, handle, concurrent, kind))
        return made

    @property
    def rollout(self) -> Rollout:
        return Rollout._make(self.store.rollouts.read("shop", 30))

    def change(self, **what: Any) -> None:
        before = self.rollout
        self.store.rollouts.change("shop", ["shop.take"], before._replace(before=before.weight)._replace(**what))

    def settle(self) -> None:
        """Step all versions until they conform."""
        for _ in range(ROUNDS):
            if self.rollout.settled:
                break
            self.step()
        assert self.rollout.settled
        self.step()

    def step(self) -> bool:
        return any([one.step() for one in self.running])

    def quiet(self, among: Sequence[Version] = ()) -> None:
        """Step until everything is at its end."""

        def ended() -> bool:
            for one in among or self.running:
                one.step()
            return bool(self.store.ledger.unfinished(["shop.take"]) == 0)

        until(ended)

    def applied(self) -> dict[str, list[str]]:
        """Name -> the versions that it is of."""
        with Session(self.store.dialect.engine) as session:
            found = effects(session)
        by: dict[str, list[str]] = defaultdict(list)
        for effect, count in found.items():
            name, _, version = effect.rpartition(" ")
            by[name] += [version] * count
        return by

    def execute(self, statement: str, *values: object) -> None:
        with self.store.transaction() as unit:
            unit.write(statement, [values])

    def check(self) -> None:
        assert not {name: found for name, found in self.applied().items() if len(found) > 1}, "something applied twice"

        def balanced() -> bool:
            self.step()  # rows that the broker took are removed a while later
            return bool(self.store.ledger.balances()["shop.take"].balanced)

        until(balanced)

    def close(self) -> None:
        for one in self.running:
            one.close()
        self.store.close()


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("rabbitmq", marks=[pytest.mark.postgresql, pytest.mark.rabbitmq]),
    ]
)
def versions(request: pytest.FixtureRequest) -> Iterator[Versions]:
    kind = request.param
    database = request.getfixturevalue("sqlite_url" if kind == "sqlite" else "postgresql_url")
    broker = request.getfixturevalue("rabbitmq_url") if kind == "rabbitmq" else ""
    with contextlib.closing(Versions(database, broker)) as made:
        yield made


def publish(version: Version, names: Sequence[str], key: Callable[[str], str | None] = lambda name: name) -> None:
    with Session(version.services.store.dialect.engine) as session:  # type: ignore[attr-defined]
        outbox = version.app.outbox(session)
        for name in names:
            outbox.send(version.orders, Order(name=name), key=key(name))
        session.commit()


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


def in_share(key: str, weight: int) -> bool:
    """Whether a key is the candidate's."""
    return bucket(Message("id", "test", "orders", b"", "", key, 0.0)) < weight


# ---------------------------------------------------------------- shares


@pytest.mark.slow
def test_the_candidate_gets_its_share_of_the_keys_and_each_key_stays_with_its_version(versions: Versions) -> None:
    old = versions.start("v1")
    versions.start("v2")
    assert versions.rollout.baseline == "v1"
    publish(old, numbers(100, 1_000_000))
    versions.quiet()
    assert {name for found in versions.applied().values() for name in found} == {"v1"}, "v2 waits for its rollout"
    many = 10_000 if versions.store.serial else 2_000  # the quickest has them all
    for weight, count in ((5, 500), (25, many), (100, 500), (5, 500)):
        versions.change(candidate="v2", weight=weight)
        versions.settle()
        names = [f"{number} in epoch {versions.rollout.epoch}" for number in numbers(count)]
        publish(old, names, key=lambda name: name.split()[0])
        versions.quiet()
        applied = versions.applied()
        by = [applied[name] for name in names]
        if count == 10_000:
            assert abs(by.count(["v2"]) - count * weight / 100) <= count / 100, "the share is kept within a percent"
        for name, found in zip(names, by, strict=True):
            assert found == ["v2" if in_share(name.split()[0], weight) else "v1"]
    versions.check()


def test_messages_without_a_key_are_shared_too_and_late_ones_go_by_the_share_of_then(versions: Versions) -> None:
    old = versions.start("v1")
    versions.start("v2")
    versions.change(candidate="v2", weight=50)
    versions.settle()
    ids = [old.app.publish(old.orders, Order(name=name), delay="1h") for name in numbers(200)]
    versions.change(weight=10)
    versions.settle()
    versions.execute("UPDATE flowkit_messages SET due = 0")
    versions.quiet()
    applied = versions.applied()
    for name, id in zip(numbers(200), ids, strict=True):
        assert applied[name] == ["v2" if in_share(id, 10) else "v1"]
    versions.check()


# ---------------------------------------------------------------- moving


def test_a_bucket_moves_when_who_had_it_has_finished(versions: Versions) -> None:
    """v1 has a message in hand of a key that v2 is to get: v2 gets the next one when that is done."""
    key = next(name for name in numbers(1_000) if in_share(name, 25))
    old, new = versions.start("v1"), versions.start("v2")

    def received() -> bool:
        old.worker.relay.step()
        for lane in old.worker.lanes:
            lane.held += lane.consumer.receive(10)
        return any(lane.held for lane in old.worker.lanes)

    publish(old, ["first"], key=lambda _: key)
    until(received)
    versions.change(candidate="v2", weight=25)
    publish(new, ["second"], key=lambda _: key)
    for _ in range(20):
        for one in versions.running:
            one.worker.maintenance._beaten = float("-inf")
            one.worker.maintenance.tick()
        new.step()
    assert not versions.rollout.settled, "v1 has something of it in hand"
    assert "second" not in versions.applied()
    versions.settle()
    versions.quiet()
    assert versions.applied() == {"first": ["v1"], "second": ["v2"]}
    versions.check()


@pytest.mark.parametrize(
    "versions", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)
def test_a_change_while_a_version_receives_is_not_overlooked(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate has been left something of a share that is no more its own, and hands it back."""
    old, new, place = versions.start("v1"), versions.start("v2"), FLOW + CANDIDATE
    versions.change(candidate="v2", weight=50)
    versions.settle()
    key = next(name for name in numbers(100) if in_share(name, 50) and not in_share(name, 5))
    publish(new, [key])

    def handed_on() -> bool:
        old.step()
        return bool(versions.store.queue.due([place]) == {place})

    def conforming() -> bool:
        new.worker.maintenance._beaten = float("-inf")
        new.worker.maintenance.tick()  # it has not received anything
        old.step()
        return versions.rollout.settled and new.worker.versions.state[1]

    until(handed_on)
    versions.change(weight=5)
    until(conforming)
    consumer, *_ = new.worker.versions.consumers
    rows = consumer._places[place]
    receive = rows.receive

    def late(limit: int) -> list[Delivery]:
        found = receive(limit)
        versions.change(weight=0)
        new.worker.versions.look()
        return found

    monkeypatch.setattr(rows, "receive", late)
    assert consumer.receive(10) == []
    monkeypatch.undo()
    versions.settle()
    versions.quiet()
    assert versions.applied() == {key: ["v1"]}


def test_what_async_handlers_have_in_hand_moves_when_it_is_done(versions: Versions) -> None:
    old = versions.start("v1", concurrent=True)
    versions.start("v2", concurrent=True)
    for weight in (50, 20):
        publish(old, [f"{name} at {weight}" for name in numbers(100)], key=lambda name: name.split()[0])
        old.step()  # some are at work
        versions.change(candidate="v2", weight=weight)
        versions.settle()
        versions.quiet()
    publish(old, numbers(100))
    versions.quiet()
    applied = versions.applied()
    expected = [["v2" if in_share(name, 20) else "v1"] for name in numbers(100)]
    assert [applied[name] for name in numbers(100)] == expected
    assert len(applied) == 300
    versions.check()


def test_a_paused_flow_holds_up_no_rollout(versions: Versions) -> None:
    """A lane that rests gives back what it holds."""
    old, new = versions.start("v1"), versions.start("v2")
    publish(old, numbers(50))
    old.worker.relay.step()
    old.worker.lanes[0].held += old.worker.lanes[0].consumer.receive(10)
    versions.store.directions.set("paused", ["shop.take"], 1)
    versions.change(baseline="v2", candidate="v2", weight=0)
    versions.settle()
    assert not versions.applied()
    versions.store.directions.set("paused", ["shop.take"], None)
    versions.running.remove(old)
    old.close()
    versions.quiet([new])
    assert versions.applied() == {name: ["v2"] for name in numbers(50)}
    versions.check()


def test_a_change_waits_for_a_worker_that_is_about_to_start(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read what was before, and joins after the change."""
    versions.start("v1")
    versions.start("v2")
    join = Fleet.join

    def change_first(fleet: Fleet, worker: WorkerInfo, epoch: int = 0) -> None:
        versions.change(baseline="v2", candidate="v2", weight=0)
        join(fleet, worker, epoch)

    monkeypatch.setattr(Fleet, "join", change_first)
    late = versions.start("v1")
    monkeypatch.undo()
    assert late.worker.versions.role == "none"
    versions.settle()
    publish(late, numbers(20))
    versions.quiet()
    assert versions.applied() == {name: ["v2"] for name in numbers(20)}


def test_what_a_dead_candidate_left_is_the_baselines_after_a_rollback(versions: Versions) -> None:
    old = versions.start("v1")
    new = versions.start("v2")
    versions.change(candidate="v2", weight=100)
    versions.settle()
    publish(old, numbers(50))
    for _ in range(5):
        old.step()  # hands them on
    versions.running.remove(new)
    new.close()
    versions.change(weight=0)
    versions.settle()
    versions.quiet()
    assert set(versions.applied()) == set(numbers(50))
    assert {one for found in versions.applied().values() for one in found} == {"v1"}
    versions.check()


def test_after_a_promotion_the_old_version_gets_nothing_and_leaves_nothing_behind(versions: Versions) -> None:
    old = versions.start("v1")
    new = versions.start("v2")
    versions.change(candidate="v2", weight=50)
    versions.settle()
    publish(old, numbers(50))
    old.app.publish(old.orders, Order(name="late"), delay="1s")
    versions.change(baseline="v2", candidate="v2", weight=0)
    versions.settle()
    [gone] = [one for one in versions.store.ledger.workers() if one.version == "v1"]
    assert gone.epoch == versions.rollout.epoch, "it is drained"
    before = versions.applied()
    versions.running.remove(old)
    old.close()
    publish(new, numbers(50, 50))
    versions.quiet()
    applied = versions.applied()
    assert set(applied) == {*numbers(100), "late"}
    assert all(found == ["v2"] for name, found in applied.items() if name not in before)
    versions.check()


def test_versions_that_come_later_wait(versions: Versions) -> None:
    versions.start("v1")
    versions.start("v2")
    versions.start("v3")
    roles = {one.name: one.worker.versions.role for one in versions.running}
    assert roles == {"v1": "baseline", "v2": "none", "v3": "none"}


def test_workers_without_a_version_are_the_baseline_of_the_first_one(versions: Versions) -> None:
    nameless = versions.start("")
    publish(nameless, numbers(10))
    versions.start("v2")
    versions.quiet()
    assert versions.rollout.baseline == ""
    assert {one for found in versions.applied().values() for one in found} == {""}


# ---------------------------------------------------------------- a bad candidate


def bad_candidate(versions: Versions) -> Version:
    """Half of the messages go to a version that refuses them all. Returns the baseline."""

    def refuse(order: Order, message: Message) -> None:
        raise Reject("this version is bad")

    baseline = versions.start("v1")
    versions.start("v2", refuse)
    versions.change(candidate="v2", weight=50)
    versions.settle()
    return baseline


def test_what_died_at_a_candidate_is_known_and_can_be_sent_again(versions: Versions) -> None:
    old = bad_candidate(versions)
    publish(old, numbers(40))
    versions.quiet()
    letters = versions.store.dead_letters.of_version("shop", "v2")
    assert len(letters) == sum(in_share(name, 50) for name in numbers(40)) > 0
    versions.change(weight=0)
    versions.settle()
    assert versions.store.dead_letters.retry(letters) == len(letters)
    versions.quiet()
    assert versions.applied() == {name: ["v1"] for name in numbers(40)}
    versions.check()


def test_what_a_version_cannot_read_waits_while_another_one_is_beside_it(versions: Versions) -> None:
    versions.start("v1")
    new = versions.start("v2")
    versions.change(candidate="v2", weight=50)
    versions.settle()
    [key] = [name for name in numbers(100) if not in_share(name, 50)][:1]
    new.app.publish(Channel("orders", dict), {"surname": "x"}, key=key)
    for _ in range(10):
        versions.step()
    assert versions.store.dead_letters.select() == [], "v2 may be able to read it"
    assert versions.store.ledger.unfinished(["shop.take"]) == 1
    versions.change(weight=0)
    versions.settle()
    versions.execute("UPDATE flowkit_messages SET due = 0")
    versions.quiet()
    assert len(versions.store.dead_letters.select()) == 1, "nobody can"
    versions.check()


class OrderV1(BaseModel):
    version: Literal[1] = 1
    name: str


class OrderV2(BaseModel):
    version: Literal[2] = 2
    name: str
    kind: str


def test_messages_of_a_later_type_wait_for_the_version_that_reads_them(versions: Versions) -> None:
    """And those of the earlier type, delayed ones too, are read by both."""
    old, new = versions.start("v1", kind=OrderV1), versions.start("v2", kind=OrderV1 | OrderV2)
    versions.change(candidate="v2", weight=50)
    versions.settle()
    mine = next(name for name in numbers(100) if in_share(name, 50))
    theirs = next(name for name in numbers(100) if not in_share(name, 50))
    with Session(versions.store.dialect.engine) as session:
        outbox = new.app.outbox(session)
        for key in (mine, theirs):
            outbox.send(new.orders, OrderV2(name=f"later {key}", kind="tea"), key=key)
            outbox.send(old.orders, OrderV1(name=f"earlier {key}"), key=key)
            outbox.send(old.orders, OrderV1(name=f"delayed {key}"), key=key, delay="1h")
        session.commit()

    def handled() -> bool:
        versions.step()
        return len(versions.applied()) == 3

    until(handled)
    earlier = {f"earlier {mine}": ["v2"], f"earlier {theirs}": ["v1"]}
    assert versions.applied() == {**earlier, f"later {mine}": ["v2"]}
    assert versions.store.dead_letters.select() == []
    versions.change(baseline="v2", weight=0)
    versions.settle()
    versions.execute("UPDATE flowkit_messages SET due = 0")
    versions.quiet()
    last = {f"later {theirs}": ["v2"], f"delayed {mine}": ["v2"], f"delayed {theirs}": ["v2"]}
    assert versions.applied() == {**earlier, f"later {mine}": ["v2"], **last}
    versions.check()


# ---------------------------------------------------------------- processes, and what is asked wrongly


class Deployed(Instances):
    """Instances of versions, whose effects say which version they are of. Version `bad` fails every tenth order."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.app = "tests.version_app:app"

    def flowkit(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "flowkit", "rollout", *words],
            env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip

    def states(self) -> list[str]:
        return sorted(one.state for one in self.store.ledger.workers())

    def by(self) -> dict[str, list[str]]:
        """Order -> the versions that it took effect at."""
        found: dict[str, list[str]] = defaultdict(list)
        for effect, count in self.applied().items():
            order, version = effect.split()
            found[order] += [version] * count
        return found

    def both(self, candidate: str) -> list[int]:
        """v1, and one that waits beside it."""
        first = self.start("--version", "v1")
        until(lambda: self.states() == ["ready"])
        second = self.start("--version", candidate)
        until(lambda: self.states() == ["ready", "waiting"])
        return [first, second]

    def check_versions(self, clients: Clients) -> None:
        """Nothing failed, nothing is lost, nothing took effect twice."""
        clients.stop()
        assert not clients.failed
        until(lambda: self.store.ledger.unfinished(["front.accept"]) == 0)
        assert {order: len(found) for order, found in self.by().items()} == dict.fromkeys(clients.accepted, 1)
        assert self.store.ledger.balances()["front.accept"].balanced


@pytest.fixture
def deployed(postgresql_url: str) -> Iterator[Deployed]:
    with contextlib.closing(Deployed(postgresql_url)) as made:
        yield made


@pytest.fixture
def haproxy() -> Iterator[tuple[str, Balancer]]:
    with contextlib.closing(Balancer("haproxy")) as made:
        yield "haproxy", made


@pytest.mark.processes
@pytest.mark.postgresql
@pytest.mark.timeout(300)
def test_a_candidate_is_promoted_under_load(deployed: Deployed, haproxy: tuple[str, Balancer]) -> None:
    old = [deployed.start("--version", "v1") for _ in range(2)]
    until(lambda: all(map(deployed.ready, old)))
    new = deployed.start("--version", "v2")
    clients = Clients(before(haproxy, [*old, new]).port)
    until(lambda: deployed.states() == ["ready", "ready", "waiting"])
    assert not deployed.ready(new), "it has no share"
    for words in (("start", "v2", "--weight", "5"), ("shift", "25"), ("promote",)):
        clients.go_on()
        done = deployed.flowkit(*words)
        assert done.returncode == 0, done.stderr
    told = json.loads(deployed.flowkit("status", "--json").stdout)
    assert {one["name"]: one["role"] for one in told["versions"]} == {"v2": "baseline", "v1": "drained"}
    until(lambda: deployed.ready(new))
    assert [deployed.end(port) for port in old] == [0, 0]
    clients.go_on()
    deployed.check_versions(clients)


@pytest.mark.processes
@pytest.mark.postgresql
@pytest.mark.timeout(300)
def test_a_bad_candidate_is_rolled_back_by_itself(deployed: Deployed, haproxy: tuple[str, Balancer]) -> None:
    ports = deployed.both("bad")
    clients = Clients(before(haproxy, ports).port)
    clients.go_on()
    done = deployed.flowkit("start", "bad", "--weight", "25", "--auto", "--steps", "50", "--every", "50s")
    assert done.returncode == 1, done.stderr
    assert "of its messages fail" in done.stdout
    clients.go_on()
    deployed.check_versions(clients)
    assert {version for found in deployed.by().values() for version in found} == {"v1", "bad"}


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_good_candidate_is_promoted_by_itself(sqlite_url: str) -> None:
    with contextlib.closing(Deployed(sqlite_url)) as deployed:
        ports = deployed.both("v2")
        clients = Clients(ports[0], 2)
        done = deployed.flowkit("start", "v2", "--weight", "50", "--auto", "--steps", "50,100", "--every", "3s")
        assert done.returncode == 0, done.stderr
        assert "version v2 has 100 %" in done.stdout
        until(lambda: deployed.states() == ["ready", "waiting"])
        assert deployed.ready(ports[1])
        clients.stop()
        assert not {one for one in clients.failed if not one.startswith("503")}, "v1 takes no more in the end"
        assert deployed.store.rollouts.read("front", 30).baseline == "v2"


@pytest.mark.processes
def test_a_flow_that_receives_from_elsewhere_needs_another_name(sqlite_url: str, tmp_path: Path) -> None:
    code = (ROOT / "tests" / "version_app.py").read_text().replace('"/orders"', '"/v2/orders"')
    (tmp_path / "moved.py").write_text(code)
    with contextlib.closing(Deployed(sqlite_url)) as deployed:
        deployed.start("--version", "v1")
        until(lambda: deployed.states() == ["ready"])
        deployed.app = str(tmp_path / "moved.py")
        port = deployed.start("--version", "v2")
        assert deployed.running.pop(port).wait(SECONDS) == 2
        assert deployed.store.subscribers.channels()["front.accept"] == "POST /orders"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "v2", "--weight", "101"), "Invalid value"),
        (("shift", "-1"), "No such option"),
        (("start", "v9"), "no worker of version v9"),
        (("start", "v1"), "version v1 is the baseline"),
        (("promote", "v9"), "no worker of version v9"),
        (("promote",), "no version of app front is rolled out"),
        (("rollback",), "no version of app front is rolled out"),
        (("shift", "25", "--app", "back"), "no app back has versions"),
        (("start", "v1", "--auto", "--steps", "50,25"), "rising percents"),
        (("start", "v2", "--steps", "50"), "add --auto"),
        (("promote", ""), "the version is empty; write '(none)'"),
    ],
)
def test_what_is_asked_wrongly_is_told(sqlite_url: str, words: tuple[str, ...], said: str) -> None:
    with contextlib.closing(Deployed(sqlite_url)) as deployed:
        deployed.store.subscribers.add({"front.accept": "x"})
        deployed.store.rollouts.enter("front", "v1", 30)
        done = deployed.flowkit(*words)
    assert done.returncode == 2
    assert said in done.stderr


def command(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of `flowkit rollout` run in this process; while they wait the versions work."""
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", versions.settings.database_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", versions.settings.broker_url)
    for module in (rollouts, ramp):
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: versions.step())
        monkeypatch.setattr(module, "time", clock)
    versions.step()


def test_a_version_is_not_started_over_another_one_that_somebody_started_meanwhile(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("v1", "v2", "v3"):
        versions.start(name)
    command(versions, monkeypatch)
    monkeypatch.setattr(rollouts.Fleet, "declare", lambda fleet, transport: versions.change(candidate="v2", weight=50))
    with pytest.raises(StoreConflict, match="another operator has just changed"):
        rollout.start("v3", 5, "", None)
    assert (versions.rollout.candidate, versions.rollout.weight) == ("v2", 50)


def test_a_share_is_not_changed_by_somebody_else_before_it_is_in_force(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("v1", "v2"):
        versions.start(name)
    versions.change(candidate="v2", weight=75)
    versions.settle()
    command(versions, monkeypatch)
    settle = rollouts.Fleet.settle

    def meanwhile(fleet: rollouts.Fleet) -> Rollout:
        found = settle(fleet)
        versions.change(weight=10)
        return found

    monkeypatch.setattr(rollouts.Fleet, "settle", meanwhile)
    with pytest.raises(StoreConflict, match="another operator has just changed"):
        rollout.shift(25, "")
    found = versions.rollout
    assert (found.weight, found.reach) == (10, 75)
    assert found.roll_back().before == found.shift(50).before == found.promote("v2").before == 75


def test_a_bad_candidate_goes_back_though_the_store_is_away_just_then(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bad_candidate(versions)
    for one in versions.running:
        one.worker._figures._since = 0.0  # what comes in the first seconds of a share says nothing otherwise
    publish(first, numbers(100))
    versions.quiet()
    command(versions, monkeypatch)
    trouble = [StoreUnavailable("away"), StoreConflict("somebody was quicker"), CommitUnknown("lost just then")]
    with rollout.fleet("") as here:
        change, retry = here.store.rollouts.change, here.store.dead_letters.retry

        def troubled(*arguments: Any) -> None:
            if len(trouble) == 1:
                change(*arguments)
            if trouble:
                raise trouble.pop(0)

        def away_once(letters: Sequence[str]) -> int:
            monkeypatch.setattr(here.store.dead_letters, "retry", retry)
            raise StoreUnavailable("away")

        monkeypatch.setattr(here.store.rollouts, "change", troubled)
        monkeypatch.setattr(here.store.dead_letters, "retry", away_once)
        *_, last = ramp.Climb(here, ramp.Ramp([100], 60.0, Plan(1.0, 30.0)), "v2").run()
        assert isinstance(last, rollouts.RolledBack)
    assert not trouble
    versions.quiet()
    assert versions.applied() == {name: ["v1"] for name in numbers(100)}
    versions.check()


def test_instances_without_a_version_can_be_the_baseline_again(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.start("")
    versions.start("v2")
    versions.step()
    command(versions, monkeypatch)
    rollout.promote("v2", "")
    assert versions.rollout.baseline == "v2"
    with pytest.raises(ConfigError, match=r"to go back, promote the version before it: .* promote '\(none\)'"):
        rollout.rollback("")
    rollout.promote("(none)", "")
    assert versions.rollout.baseline == ""
    with pytest.raises(ConfigError, match="a candidate needs a name"):
        rollout.start("", 5, "", None)


def test_a_good_candidate_is_not_rolled_back_because_the_store_was_away_for_everybody(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.start("v1")
    versions.start("v2")
    versions.change(candidate="v2", weight=50)
    versions.settle()
    command(versions, monkeypatch)
    now = time.monotonic()
    monkeypatch.setattr(ramp, "time", SimpleNamespace(monotonic=lambda: now))
    with rollout.fleet("") as here:
        climb = ramp.Climb(here, ramp.Ramp([100], 3600.0, Plan(1.0, 30.0)), "v2")
        with monkeypatch.context() as patched, pytest.raises(StoreUnavailable):
            patched.setattr(rollouts.Fleet, "rollout", property(lambda _: unavailable()))
            list(climb.look())
        versions.execute("UPDATE flowkit_workers SET heartbeat = heartbeat - 6000000")
        list(climb.look())
        assert climb.goes_on, "nobody could say that it was there"
        assert versions.rollout.weight == 50
        versions.step()
        now += 2 * ramp.RECOVERY_SECONDS
        list(climb.look())
        assert climb.goes_on
        assert versions.rollout.weight == 50
        versions.execute("UPDATE flowkit_workers SET heartbeat = heartbeat - 6000000")
        list(climb.look())
        assert climb.goes_on
        assert versions.rollout.weight == 0, "now nobody is there without such a reason"


def unavailable() -> Rollout:
    raise StoreUnavailable("away")


def test_a_rollback_that_was_broken_off_is_finished_by_the_next_one(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bad_candidate(versions)
    publish(first, numbers(20))
    versions.quiet()
    versions.change(weight=0)
    command(versions, monkeypatch)
    for _ in range(2):
        rollout.rollback("")
        versions.quiet()
        assert versions.applied() == {name: ["v1"] for name in numbers(20)}
    versions.check()


def test_of_two_changes_at_once_one_is_refused(versions: Versions) -> None:
    versions.start("v1")
    seen = versions.rollout
    versions.change(candidate="v2", weight=5)
    with pytest.raises(StoreConflict, match="another operator has just changed"):
        versions.store.rollouts.change("shop", ["shop.take"], seen._replace(candidate="v3", weight=5))
    assert versions.rollout.candidate == "v2"
