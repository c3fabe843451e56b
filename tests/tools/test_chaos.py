"""Chaos, small: what `make chaos` does for minutes. What breaks when is another day's each day.

The rows of the failures have tests of their own; here they happen to each other.
"""

import datetime
import os
import random
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.chaos.campaign import Campaign, Outcome, Plan
from tests.chaos.scene import BEHIND_SECONDS, Broker, Failover, Lagging, Scene, Sqlite
from tests.chaos.soak import soak
from tests.conftest import CI
from tests.services import postgresql, rabbitmq

SEED = int(os.environ.get("CHAOS_SEED", datetime.datetime.now(datetime.UTC).toordinal()))
SOAK_MINUTES, SOAK_RATE = 2, 40
pytestmark = [pytest.mark.campaign, pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(900)]


def chaos(make: Callable[[random.Random], Scene], plan: Plan) -> Outcome:
    """Run a plan. Nothing may be wrong, and everything must have happened."""
    drawn = random.Random(SEED)
    with closing(make(drawn)) as scene:
        if not CI and "disk full" in plan.services.keys() - scene.faults.keys():
            pytest.skip("no disk can be mounted here, to be filled: that needs root")
        outcome = Campaign(scene, plan, drawn).run()
    assert outcome.faults == [], f"CHAOS_SEED={SEED}: {outcome.report()}"
    assert outcome.vacuous == []
    return outcome


def need_servers() -> None:
    if not CI and (postgresql.find_binaries() is None or rabbitmq.find_binaries() is None):
        pytest.skip("PostgreSQL or RabbitMQ is not installed: run tests/services/install")


def test_chaos_on_sqlite() -> None:
    chaos(Sqlite, Plan(1500, 22, 4, 4, 5, {"lock": 4, "disk full": 4}))


@pytest.mark.postgresql
@pytest.mark.rabbitmq
def test_chaos_on_rabbitmq_and_postgresql() -> None:
    need_servers()
    cuts = {"database cut": 4, "database cut before commit": 4, "database cut after commit": 4, "broker cut": 4}
    silence = {"database silent": 2, "broker silent": 2, "broker alarm": 1}
    restarts = {"database restart": 2, "broker restart": 2}
    chaos(Broker, Plan(1500, 22, 4, 4, 5, {**cuts, **silence, **restarts}))


@pytest.mark.postgresql
def test_row_29_failovers_to_a_synchronous_standby_lose_nothing() -> None:
    """Also while the old primary goes on and does not know that it was replaced."""
    need_servers()
    chaos(Failover, Plan(600, 4, 1, 1, 2, {"database killed": 2, "database stale": 2, "database frozen": 1}))


@pytest.mark.postgresql
def test_row_29_failovers_to_a_standby_that_is_behind_lose_what_is_measured() -> None:
    """No message takes effect twice even so. But an order may have an effect again, by a message of another id: what
    the database forgot runs again, and sends under a new id what it had sent already; that is counted in `again`."""
    need_servers()
    outcome = chaos(Lagging, Plan(600, 4, 0, 0, 0, {"database killed": 3}))
    assert all(0 <= loss.seconds < 3 * BEHIND_SECONDS[1] for loss in outcome.verdict.losses), outcome.report()


@pytest.mark.timeout(900)
def test_rows_11_and_40_nothing_grows_under_a_steady_load() -> None:
    """Two minutes of what `make soak` does for longer: memory, SQLite's log and message rows stay bounded."""
    run, outcome = soak("sqlite", minutes=SOAK_MINUTES, rate=SOAK_RATE, seed=SEED)
    assert outcome.faults == [], f"CHAOS_SEED={SEED}: {outcome.report()}"
    assert run.sample.faults(SOAK_MINUTES, SOAK_RATE) == []
