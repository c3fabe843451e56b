"""The oracle of chaos sees what is wrong: a run in order, and then spoiled by hand."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.store import handler_watch
from flowkit.store.residue import Residue
from flowkit.testing import Harness
from tests.chaos.app import DEEDS, app, orders
from tests.chaos.campaign import MANY, Outcome, Plan
from tests.chaos.oracle import Loss, Verdict, judge, losses
from tests.services.pair import Takeover
from tests.support.shop import Order

ORDERS = [Order(name=f"c0-{number}", deed="reject" if number == 0 else "") for number in range(10)]


class Scene:
    """Orders that were published and handled, and what the client noted."""

    def __init__(self, harness: Harness, folder: Path) -> None:
        self.folder = folder
        self.store: Any = harness.store
        app.publish_many(orders, ORDERS, ids=[order.name for order in ORDERS])
        harness.until_quiet()
        self.note({order.name: "ok" for order in ORDERS})

    def note(self, told: dict[str, str]) -> None:
        lines = [f"{one.name} {one.deed or '-'} {told[one.name]} 1.0\n" for one in ORDERS if one.name in told]
        (self.folder / "client-c0").write_text("".join(lines))

    def spoil(self, statement: str) -> None:
        with self.store.unit("") as unit:
            unit.write(statement, [()])
            unit.commit()

    def judge(self, depth: int = 0) -> Verdict:
        return judge(self.store, {"chaos.accept": depth}, self.folder)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("CHAOS_DIR", str(tmp_path))
    with Harness(app, f"sqlite:///{tmp_path}/flowkit.db") as harness:
        yield Scene(harness, tmp_path)


def test_a_run_in_order_has_no_fault(scene: Scene) -> None:
    verdict = scene.judge()
    assert verdict.faults == []
    # The first order had written when it was rejected, so that its batch ran again.
    assert (verdict.accepted, verdict.runs, verdict.repeated, verdict.charged) == (10, 1 + 10 + 3 * 9, 1, 0)


ONE = "accept c0-3 "
SPOILS = [
    ("lost", f"DELETE FROM effects WHERE name LIKE '{ONE}%'"),
    ("twice", f"INSERT INTO effects (name) SELECT name FROM effects WHERE name LIKE '{ONE}%'"),
    ("again", f"INSERT INTO effects (name) VALUES ('{ONE}another-id')"),
    ("unfounded", "INSERT INTO effects (name) VALUES ('accept c0-0 c0-0')"),
    ("unfounded", "INSERT INTO effects (name) VALUES ('seen c0-3 c0-3')"),
    ("unfounded", "INSERT INTO effects (name) VALUES ('late nobody -')"),
]


@pytest.mark.parametrize(("kind", "statement"), SPOILS)
def test_an_effect_that_should_not_be_as_it_is_shows(scene: Scene, kind: str, statement: str) -> None:
    scene.spoil(statement)
    assert [name for name in ("lost", "twice", "again", "unfounded") if getattr(scene.judge(), name)] == [kind]


def test_what_was_accepted_though_the_client_was_told_otherwise_shows(scene: Scene) -> None:
    scene.note({order.name: "fail" if order.name == "c0-3" else "ok" for order in ORDERS})
    assert scene.judge().invented == ["c0-3"]


def test_what_the_client_was_told_is_there_and_is_not_shows(scene: Scene) -> None:
    scene.spoil("DELETE FROM flowkit_inbox WHERE flow = 'channel:orders' AND id = 'c0-3'")
    verdict = scene.judge()
    assert verdict.lost == ["order c0-3"]
    assert verdict.unfounded, "its effects are of an order that the store does not know"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM flowkit_dead", "dead letters"),
        ("DELETE FROM flowkit_objects WHERE key = 'audit c0-3'", "objects"),
        ("UPDATE flowkit_inbox SET state = 0 WHERE id = 'c0-3' AND flow = 'chaos.accept'", "open inbox rows"),
        ("UPDATE flowkit_counters SET accepted = accepted + 1 WHERE flow = 'chaos.accept'", "chaos.accept"),
    ],
)
def test_a_store_that_does_not_add_up_shows(scene: Scene, statement: str, said: str) -> None:
    scene.spoil(statement)
    assert any(said in one for one in scene.judge().wrong)


def test_what_waits_at_the_broker_shows(scene: Scene) -> None:
    assert scene.judge(depth=1).wrong == ["the broker still holds {'chaos.accept': 1}"]


def test_an_attempt_that_nothing_accounts_for_shows(scene: Scene) -> None:
    scene.spoil("UPDATE flowkit_inbox SET attempts = 2 WHERE id = 'c0-3' AND flow = 'chaos.accept'")
    verdict = scene.judge()
    assert verdict.charged == 2
    outcome = Outcome(Plan(10, 0, 0, 0, 0), True, verdict, verdict.told, 0, 0, [], 1.0, 1.0)
    assert outcome.faults == ["2 attempts were charged, in 0 deaths"]
    assert outcome.vacuous == ["1 runs were repeated, 0 messages taken over"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_setting_that_reaches_a_neighbour_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    monkeypatch.setenv("CHAOS_DIR", str(tmp_path))
    if broken:
        monkeypatch.setattr(handler_watch, "residue", lambda statement: Residue.NONE)
    with Harness(app, f"sqlite:///{tmp_path}/flowkit.db") as harness:
        some = [Order(name=f"c0-{number}", deed="set" if number < 2 else "") for number in range(5)]
        app.publish_many(orders, some, ids=[order.name for order in some])
        harness.until_quiet()
        (tmp_path / "client-c0").write_text("".join(f"{one.name} {one.deed or '-'} ok 1.0\n" for one in some))
        seen = [name for name in judge(harness.store, {}, tmp_path).unfounded if name.startswith("seen ")]
    assert bool(seen) is broken


def test_what_never_happened_shows(scene: Scene) -> None:
    verdict = scene.judge()
    assert +verdict.did == Counter(reject=2)
    outcome = Outcome(Plan(500, 10 * MANY, 0, 0, 0), True, verdict, Counter(kill=10 * MANY), 0, 10 * MANY, [], 1.0, 1.0)
    for deed in DEEDS.keys() - {"", "slow", "reject"}:
        assert any(said.startswith(f"{deed} was done 0 times") for said in outcome.vacuous), deed
    assert not any("reject" in said for said in outcome.vacuous)
    assert "no forked child outlived its worker" in outcome.vacuous


def test_a_loss_belongs_to_the_takeover_after_it() -> None:
    takeovers = [Takeover(10.0, 11.0), Takeover(20.0, 21.0), Takeover(30.0, 31.0)]
    assert losses([9.5, 10.2, 19.0, 18.5], takeovers) == [Loss(2, 0.5), Loss(2, 1.5), Loss(0, 0.0)]
