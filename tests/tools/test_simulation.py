"""The engine under a seeded scheduler and planned faults: what `make simulate` runs, small."""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flowkit.message import Message
from flowkit.ports import Copy, Rollout
from tests.simulation.fate import Demanded, Planned
from tests.simulation.fleet import Role
from tests.simulation.mutants import MUTANTS, SHAPES, tokenless
from tests.simulation.outside import NEW, Change
from tests.simulation.run import KINDS, Run, quiet, scratch, shape, shortest, simulate
from tests.simulation.shop import DEEDS, Order
from tests.simulation.world import Process
from tests.support import ROOT

SEEDS = int(os.environ.get("SIMULATE_SEEDS", "1200"))
"""`make proof` runs these and many more."""
SECONDS = 2700
"""So long may many runs take, on one core that others use too."""
pytestmark = [pytest.mark.campaign, pytest.mark.timeout(SECONDS + 60)]


def campaign(*options: str, json_file: Path, status: int = 0) -> Any:
    """What the command line found, in a process of its own whose order of sets is fixed."""
    command = [sys.executable, "-m", "tests.simulation", *options, "--json", str(json_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == status, done.stdout[-5000:] + done.stderr[-5000:]
    return json.loads(json_file.read_text())


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_applied_twice_whatever_breaks(tmp_path: Path) -> None:
    """And everything did break: each kind of fault, at the steps where it matters."""
    found = campaign("--seeds", str(SEEDS), "--jobs", "1", json_file=tmp_path / "found.json")
    assert found["failed"] == []
    kinds: Counter[str] = Counter()
    for place in found["faults"].values():
        kinds.update(place)
    assert set(kinds) == set(KINDS)
    for step in ("begin", "claim", "handler", "stage", "remove", "count", "commit", "after commit", "lease", "send"):
        assert found["faults"][step]["kill"], f"no process was killed at {step}"
    counts = found["counts"]
    for what in (
        "runs with a rollout",
        "runs with groups",
        "takeovers",
        "deaths of all",
        "redelivered",
        "returned",
        "published twice",
    ):
        assert counts[what], f"vacuous: nothing was {what}"
    assert counts["handler calls"] > counts["messages"]


@pytest.mark.slow
def test_every_mutant_of_the_engine_is_seen(tmp_path: Path) -> None:
    found = campaign("--mutants", "--jobs", "1", json_file=tmp_path / "found.json")
    assert set(found["seen_in_run"]) == set(MUTANTS)
    assert len(MUTANTS) >= 16
    runs = Counter(map(shape, range(SEEDS)))
    late = [name for name, number in found["seen_in_run"].items() if number > runs[SHAPES[name]]]
    assert not late, "the seeds of the test above would not show these: run more of them"


def test_a_seed_makes_the_same_run_in_every_process(tmp_path: Path) -> None:
    once = campaign("--seeds", "30", "--jobs", "1", json_file=tmp_path / "once.json")
    again = campaign("--seeds", "30", "--jobs", "2", json_file=tmp_path / "again.json")
    assert once | {"seconds": 0} == again | {"seconds": 0}


def test_a_failure_is_shown_with_few_of_its_faults() -> None:
    """The seed has more of them; without any one of those that are left nothing fails."""
    mutate = MUTANTS["an_unknown_commit_counts_as_done"]
    failures = (result for seed in range(400) if (result := simulate(seed, mutate=mutate)).failure)
    pairs = ((found, shortest(found, mutate)) for found in failures)
    found, small = next((found, small) for found, small in pairs if 0 < len(small.faults) < len(found.faults))
    assert small.failure
    for needed in small.faults:
        others = {fault.point: fault.kind for fault in small.faults if fault is not needed}
        assert not simulate(found.seed, others, mutate).failure, needed


@pytest.mark.parametrize("name", ["renew", "release", "park"])
@pytest.mark.parametrize("broken", [False, True])
def test_who_holds_a_lease_no_longer_is_seen_when_it_changes_rows(name: str, broken: bool) -> None:
    """Few seeds come to each of these statements too late."""
    with ExitStack() as stack:
        stack.enter_context(quiet())
        if broken:
            stack.enter_context(tokenless(name))
        database = stack.enter_context(scratch()) / "sim.db"
        run = stack.enter_context(Run(0, Planned({}), database, True, False, False, {Role(): 1}))
        process = Process(run.world, "holder")

        def late() -> None:
            store = run.machine.services(process).store
            with store.unit("") as unit:
                unit.stage([Copy("row", Message("id", "test", "elsewhere", b"1"), "elsewhere")])
                unit.commit()
            for _ in range(2):
                assert store.queue.lease("elsewhere", 1, "worker", 1.0)
                run.world.sleep(2.0)
            row = ("row", 1)
            if name == "park":
                store.queue.park({row: "refused"}, 1.0)
            elif name == "renew":
                store.queue.renew([row], 1.0)
            else:
                store.queue.release([row])

        task = process.spawn("main", late)
        run.world.run_for(10.0)
        assert task.done
        assert ["stale holder" in str(error) for error in run.world.errors] == [True] * broken


class Faults(RuleBasedStateMachine):
    """Hypothesis decides what is published, what breaks and when; a failure shrinks to the least that is needed."""

    @initialize(
        seed=st.integers(0, 1 << 32),
        serial=st.booleans(),
        broker=st.booleans(),
        role=st.sampled_from((Role(), Role(version="v1"), Role(group="a"))),
        workers=st.integers(1, 3),
    )
    def start(self, seed: int, serial: bool, broker: bool, role: Role, workers: int) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(quiet())
        self.fate = Demanded()
        database = self.stack.enter_context(scratch()) / "sim.db"
        roles = {role: workers, **({role._replace(group="b"): 1} if role.group else {})}
        self.run = self.stack.enter_context(Run(seed, self.fate, database, serial, broker, False, roles))
        self.role = role
        self.published = 0

    @rule(
        deeds=st.lists(st.sampled_from([deed for deed in DEEDS if deed not in ("hang", "poison", "bomb")]), max_size=4)
    )
    def publish(self, deeds: list[str]) -> None:
        names = range(self.published, self.published + len(deeds))
        self.published += len(deeds)
        self.run.publish([Order(name=f"o{name}", deed=deed) for name, deed in zip(names, deeds, strict=True)])

    @rule(
        kind=st.sampled_from(KINDS), where=st.sampled_from(("", "claim", "handler", "commit", "after commit", "send"))
    )
    @precondition(lambda self: len(self.fate.wanted) < 5)
    def break_next(self, kind: str, where: str) -> None:
        self.fate.wanted.append((kind, where))

    @rule(seconds=st.floats(0.001, 3.0))
    def let_pass(self, seconds: float) -> None:
        self.run.world.run_for(seconds)

    @rule(weight=st.integers(1, 99), promoted=st.booleans())
    @precondition(lambda self: self.role.version and self.run.deployer is None)
    def roll_out(self, weight: int, promoted: bool) -> None:
        last: Change = (lambda one: one.promote(NEW)) if promoted else Rollout.roll_back
        self.run.deploy(1, [lambda one: one.start(NEW, weight), last])

    @rule()
    def switch_off(self) -> None:
        self.run.fleet.kill_all()

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.fate.wanted.clear()
            with self.stack:
                failure = self.run.finish()
            assert not failure, failure


TestFaults = pytest.mark.slow(Faults.TestCase)
TestFaults.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
