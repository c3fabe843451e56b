"""The rules of the inbox and of the ledger, driven by hypothesis over every order of events it can think of."""

from collections import Counter
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.orm import Session

from flowkit import App, Reject, RetryPolicy
from flowkit.engine.worker import Worker
from flowkit.testing import Harness
from tests.support.shop import Effect, Order, effects, new_app

STEPS = ("decode", "look", "claim", "handle", "stage", "commit", "settle", "publish")
ATTEMPTS = 3


class Killed(BaseException):
    """The process dies here."""


class InboxRules(RuleBasedStateMachine):
    """Send, claim, fail, retry, duplicate, crash, replay and purge, over a broker that redelivers."""

    broker = True
    transactional = True

    @initialize()
    def open(self) -> None:
        self.failures: Counter[str] = Counter()
        self.sent: list[str] = []
        self.replayed = False
        self.bomb: tuple[str, str] | None = None
        self.app = self.make_app()
        self.harness = Harness(self.app, broker=self.broker)
        self.arm()

    def make_app(self) -> App:
        app = new_app()
        self.orders = app.channel("orders", Order)
        self.done = app.channel("done", Order)

        def fail_if_told(order: Order) -> None:
            if self.failures[order.name]:
                self.failures[order.name] -= 1
                raise ValueError("told to fail")

        retry = RetryPolicy(attempts=ATTEMPTS, first="1s", factor=1, jitter=0)
        if self.transactional:

            @app.flow(self.orders, to=self.done, retry=retry)
            def accept(order: Order, db: Session) -> Order:
                db.add(Effect(name=f"accept {order.name}"))
                fail_if_told(order)
                return order
        else:

            @app.flow(self.orders, to=self.done, retry=retry, name="accept")
            def plain(order: Order) -> Order:
                fail_if_told(order)
                return order

        @app.flow(self.done)
        def finish(order: Order, db: Session) -> None:
            db.add(Effect(name=f"finish {order.name}"))

        return app

    def arm(self) -> None:
        """Wrap the steps of the pipelines: each may be the last of its process."""
        for lane in self.harness.worker.lanes:
            for name in STEPS:
                setattr(lane.pipeline, name, self.armed(name, getattr(lane.pipeline, name)))

    def armed(self, name: str, method: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if self.bomb == (name, "before"):
                raise Killed
            result = method(*arguments, **options)
            if self.bomb == (name, "after"):
                raise Killed
            return result

        return step

    @rule(fails=st.integers(0, 4))
    def send(self, fails: int) -> None:
        name = str(len(self.sent))
        self.failures[name] = fails
        self.sent.append(name)
        self.harness.publish(self.orders, Order(name=name))

    @rule(rounds=st.integers(1, 3))
    def work(self, rounds: int) -> None:
        for _ in range(rounds):
            self.harness.worker.step()

    @rule(step=st.sampled_from(STEPS), when=st.sampled_from(("before", "after")))
    def crash(self, step: str, when: str) -> None:
        self.bomb = (step, when)
        try:
            self.harness.worker.step()
        except Killed:
            self.restart()
        self.bomb = None

    def restart(self) -> None:
        """Another process goes on: what the dead one held in memory is gone."""
        self.bomb = None
        dead, harness = self.harness.worker, self.harness
        harness.broker.disconnect()
        harness.store.fleet.leave(dead.id)
        harness.worker = Worker(self.app, harness.services)
        self.arm()

    @rule()
    def disconnect(self) -> None:
        self.harness.broker.disconnect()
        self.restart()

    @precondition(lambda self: self.broker)
    @rule(flow=st.sampled_from(("shop.accept", "shop.finish")))
    def duplicate(self, flow: str) -> None:
        if self.harness.broker.depths([flow])[flow] < 50:
            self.harness.broker.duplicate(flow)

    @rule(seconds=st.sampled_from((1, 2, 40)))
    def time_passes(self, seconds: int) -> None:
        self.harness.clock.advance(seconds)

    @rule(attempt=st.booleans())
    def charge_one(self, attempt: bool) -> None:
        """A supervisor charges a message, whatever state it is in by now."""
        if self.sent:
            with self.harness.store.unit("") as unit:
                rows = unit.read("SELECT flow, source, id FROM flowkit_messages ORDER BY copy LIMIT 1")
            for identity in rows:
                self.harness.store.suspects.charge(identity, "gone", attempt)

    @rule()
    def replay(self) -> None:
        letters = self.harness.store.dead_letters
        self.replayed = bool(letters.retry(letters.select())) or self.replayed

    @rule()
    def lose_open_inbox_rows(self) -> None:
        """A restore lost the rows of messages that wait for a retry: nothing of them was applied."""
        with self.harness.store.transaction() as unit:
            unit.write("DELETE FROM flowkit_inbox WHERE state = 0", [()])

    @invariant()
    def nothing_takes_effect_twice(self) -> None:
        if hasattr(self, "harness"):
            with self.harness.session() as session:
                assert {name: count for name, count in effects(session).items() if count > 1} == {}

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        harness = self.harness
        try:
            self.bomb = None
            self.failures.clear()
            self.restart()
            for _ in range(6):
                harness.advance("2m")
            with harness.session() as session:
                found = effects(session)
            dead = [Order.model_validate_json(letter.message.body).name for letter in harness.dead()]
            wanted = {"accept", "finish"} if self.transactional else {"finish"}
            for name in self.sent:
                ends = {kind for kind in wanted if found.get(f"{kind} {name}")}
                assert (ends == wanted) != (name in dead), f"{name}: {ends or 'nothing'}, dead {dead.count(name)} times"
                assert dead.count(name) <= 1
            for flow, balance in harness.balances().items():
                assert balance.balanced, f"{flow}: {balance}"
                assert balance.pending == 0, f"{flow}: {balance}"
        finally:
            harness.close()


class InboxRulesOnRows(InboxRules):
    """The same with the store's rows as the queue."""

    broker = False


class InboxRulesWithoutDatabase(InboxRules):
    """The same for handlers that are claimed after they ran."""

    transactional = False


class LedgerRules(RuleBasedStateMachine):
    """What is accepted is applied, dead, discarded, expired or pending: at every moment, not only at rest."""

    @initialize()
    def open(self) -> None:
        app = new_app()
        self.orders = app.channel("orders", Order)
        self.copies = app.channel("copies", Order)
        self.model: Counter[str] = Counter()

        @app.flow(self.orders, to=self.copies, retry=RetryPolicy(attempts=2, first="1s", jitter=0))
        def accept(order: Order) -> Order:
            if order.deed == "reject":
                raise Reject("told to")
            if order.deed == "fail":
                raise ValueError("told to")
            return order

        @app.flow(self.copies)
        def left(order: Order, db: Session) -> None:
            db.add(Effect(name=order.name))

        @app.flow(self.copies)
        def right(order: Order) -> None:
            """Gets a copy of its own."""

        self.app = app
        self.folder = TemporaryDirectory()
        self.harness = Harness(app, f"sqlite:///{self.folder.name}/flowkit.db")
        self.ids = 0

    @rule(deed=st.sampled_from(("", "reject", "fail")), again=st.booleans())
    def publish(self, deed: str, again: bool) -> None:
        self.ids += 1
        for _ in range(1 + again):
            self.app.publish(self.orders, Order(name=str(self.ids), deed=deed), id=f"order-{self.ids}")
        self.model["accepted"] += 1

    @rule(commit=st.booleans())
    def publish_in_a_session(self, commit: bool) -> None:
        with Session(self.harness.store.dialect.engine) as session:
            self.app.outbox(session).send(self.orders, Order(name="session"))
            session.commit() if commit else session.rollback()
        self.model["accepted"] += commit

    @rule()
    def work(self) -> None:
        self.harness.worker.step()

    @rule(time=st.sampled_from(("1s", "1d", "8d")))
    def time_passes(self, time: str) -> None:
        self.harness.advance(time)

    @rule(verb=st.sampled_from(("retry", "discard")))
    def settle_the_dead(self, verb: str) -> None:
        letters = self.harness.store.dead_letters
        getattr(letters, verb)(letters.select()[:2])

    @invariant()
    def the_ledger_balances(self) -> None:
        if hasattr(self, "harness"):
            balances = self.harness.balances()
            for flow, balance in balances.items():
                assert balance.balanced, f"{flow}: {balance}"
            assert balances["shop.accept"].accepted == self.model["accepted"]
            assert balances["shop.left"].accepted == balances["shop.right"].accepted
            assert balances["shop.left"].accepted == balances["shop.accept"].applied

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.close()
            self.folder.cleanup()


FEW = settings(max_examples=60, stateful_step_count=25)
TestInboxRules = pytest.mark.slow(InboxRules.TestCase)
TestInboxRulesOnRows = pytest.mark.slow(InboxRulesOnRows.TestCase)
TestInboxRulesWithoutDatabase = pytest.mark.slow(InboxRulesWithoutDatabase.TestCase)
TestLedgerRules = pytest.mark.slow(LedgerRules.TestCase)
for _machine in (TestInboxRules, TestInboxRulesOnRows, TestInboxRulesWithoutDatabase, TestLedgerRules):
    _machine.settings = FEW
del _machine
