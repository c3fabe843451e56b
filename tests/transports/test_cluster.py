"""Three nodes of RabbitMQ on a network that is parted, and what that does to flows."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from flowkit import services
from flowkit.transports.rabbitmq.queues import Queues
from tests.conftest import CI
from tests.services.cluster import Cluster
from tests.support.broker_shop import NAMES, Shop
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.rabbitmq,
    pytest.mark.postgresql,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
KILLS = 2
RECONNECT_SECONDS = 30
AT_ONCE = 500
"""Somebody who publishes all the time is at most so far ahead."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """The cluster of these tests."""
    try:
        made = Cluster()
    except (FileNotFoundError, PermissionError) as error:
        if CI:
            raise
        pytest.skip(str(error))
    with closing(made):
        made.start()
        yield made


@pytest.fixture
def cluster(nodes: Cluster) -> Cluster:
    """The cluster, whatever the test before did to it."""
    nodes.start()
    return nodes


@pytest.fixture
def shop(postgresql_url: str, cluster: Cluster) -> Iterator[Shop]:
    with closing(Shop(postgresql_url, cluster.url())) as made:
        made.services.transport.declare(list(made.app.flows))
        yield made


def queue(shop: Shop) -> str:
    return Queues(shop.store.identity()).name("shop.accept")


@contextmanager
def published(shop: Shop) -> Iterator[list[str]]:
    """Orders are published all the time. Gives their names."""
    names: list[str] = []
    stopping = threading.Event()

    def publish() -> None:
        while not stopping.is_set():
            batch = [str(len(names) + number) for number in range(10)]
            shop.publish(*batch)
            names.extend(batch)
            while shop.store.ledger.unfinished(list(shop.app.flows)) > AT_ONCE and not stopping.wait(0.01):
                """As fast as they are taken."""

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield names
    finally:
        stopping.set()
        thread.join()


def test_row_13_a_leader_that_is_killed_under_load_costs_nothing(shop: Shop, cluster: Cluster) -> None:
    applied = shop.store.ledger.balances
    with shop.worker():
        with published(shop) as names:
            for _ in range(KILLS):
                leader, before = cluster.leader(queue(shop)), applied()["shop.invoice"].applied
                wait_until(lambda: applied()["shop.invoice"].applied > before + 100)  # noqa: B023
                leader.kill()
                assert not shop.ended(), "vacuous: nothing was on its way"
                killed, before = time.monotonic(), applied()["shop.invoice"].applied
                wait_until(lambda: applied()["shop.invoice"].applied > before + 2 * AT_ONCE)  # noqa: B023
                print(f"{2 * AT_ONCE} more applied {time.monotonic() - killed:.1f} s after the kill")
                assert cluster.leader(queue(shop)) is not leader
                cluster.start()
        shop.check(*names)


@pytest.mark.parametrize("leads", [True, False], ids=["with the leader", "without the leader"])
def test_row_19_a_client_on_the_minoritys_side_goes_to_the_other_one(
    leads: bool, shop: Shop, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = cluster.leader(queue(shop))
    alone = leader if leads else next(node for node in cluster.nodes if node is not leader)
    shop.settings = shop.settings.model_copy(update={"broker_url": cluster.url(first=alone)})
    monkeypatch.setattr(services, "JITTER", lambda: 0.0)  # which chooses the first of its hosts
    with shop.worker():
        shop.publish("before")
        shop.check("before")
        monkeypatch.setattr(services, "JITTER", random.random)
        cluster.part(alone)
        parted = time.monotonic()
        shop.publish(*NAMES)
        wait_until(shop.ended, 3 * RECONNECT_SECONDS)
        print(f"all applied {time.monotonic() - parted:.1f} s after the partition")
        cluster.join(alone)
        shop.check("before", *NAMES)


@pytest.mark.parametrize("parted", [False, True], ids=["killed", "parted"])
def test_row_20_without_a_majority_nothing_is_confirmed_and_later_all_is(
    parted: bool, shop: Shop, cluster: Cluster
) -> None:
    with shop.worker() as worker:
        shop.publish("before")
        shop.check("before")
        for node in cluster.nodes[1:]:
            cluster.part(node) if parted else node.kill()
        shop.publish(*NAMES)
        wait_until(lambda: worker.state == "unready" and not any(node.answers() for node in cluster.nodes))
        again = [f"again {name}" for name in NAMES]
        shop.publish(*again)
        # Exactly those that came when there was no majority. What was on its way just then may be confirmed, or not.
        with shop.store.unit("") as unit:
            bodies = unit.read("SELECT body FROM flowkit_messages WHERE flow = 'shop.accept'")
        assert sum(b'"again ' in body for (body,) in bodies) == len(again), "something was confirmed"
        assert sum(shop.store.ledger.pending(list(shop.app.flows))) >= len(NAMES) + len(again), "something is lost"
        cluster.start()
        shop.check("before", *NAMES, *again)
