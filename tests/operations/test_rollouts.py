"""Versions side by side: a share of the keys each, none of them at both, and nothing lost when a version goes."""

from typing import Literal

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import Session

from flowkit import Channel, Message
from flowkit.engine.versions import bucket
from flowkit.ports import CANDIDATE, Delivery, WorkerInfo
from flowkit.store.fleet import Fleet
from tests.support.shop import Order
from tests.support.versions import Versions, bad_candidate, numbers, publish
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated

FLOW = "shop.take"


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
    wait_until(received)
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

    def passed_on() -> bool:
        old.step()
        return bool(versions.store.queue.due([place]) == {place})

    def conforming() -> bool:
        new.worker.maintenance._beaten = float("-inf")
        new.worker.maintenance.tick()  # it has not received anything
        old.step()
        return versions.rollout.settled and new.worker.versions.state[1]

    wait_until(passed_on)
    versions.change(weight=5)
    wait_until(conforming)
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

    wait_until(handled)
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
