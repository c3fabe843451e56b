"""`flowkit rollout`: wrong requests, two changes at once, and a store that is away."""

import contextlib
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from flowkit.cli import rollout
from flowkit.errors import CommitUnknown, ConfigError, StoreConflict, StoreUnavailable
from flowkit.operations import ramp, rollouts
from flowkit.operations.comparison import Plan
from flowkit.ports import Rollout
from tests.support.versions import Deployed, Versions, bad_candidate, numbers, publish

pytestmark = pytest.mark.migrated


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
