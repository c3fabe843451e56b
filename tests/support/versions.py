"""Versions of an app, side by side."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.orm import Session

from flowkit import Message, Reject, UnitOfWork
from flowkit.engine.worker import Worker
from flowkit.ports import Rollout
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from tests.support import ROOT
from tests.support.instances import SECONDS, Clients, Instances
from tests.support.shop import FAST, Base, Effect, Order, effects, new_app
from tests.support.waiting import wait_until

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

        wait_until(ended)

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

        wait_until(balanced)

    def close(self) -> None:
        for one in self.running:
            one.close()
        self.store.close()


def publish(version: Version, names: Sequence[str], key: Callable[[str], str | None] = lambda name: name) -> None:
    with Session(version.services.store.dialect.engine) as session:  # type: ignore[attr-defined]
        outbox = version.app.outbox(session)
        for name in names:
            outbox.send(version.orders, Order(name=name), key=key(name))
        session.commit()


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


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


# ---------------------------------------------------------------- processes, and what is asked wrongly


class Deployed(Instances):
    """Instances of versions, whose effects say which version they are of. Version `bad` fails every tenth order."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.app = "tests.support.version_app:app"

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
        wait_until(lambda: self.states() == ["ready"])
        second = self.start("--version", candidate)
        wait_until(lambda: self.states() == ["ready", "waiting"])
        return [first, second]

    def check_versions(self, clients: Clients) -> None:
        """Nothing failed, nothing is lost, nothing took effect twice."""
        clients.stop()
        assert not clients.failed
        wait_until(lambda: self.store.ledger.unfinished(["front.accept"]) == 0)
        assert {order: len(found) for order, found in self.by().items()} == dict.fromkeys(clients.accepted, 1)
        assert self.store.ledger.balances()["front.accept"].balanced
