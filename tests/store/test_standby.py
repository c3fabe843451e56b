"""What a synchronous standby does not have is not done."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from flowkit import App, Channel, Message
from flowkit.errors import CommitUnknown, OutcomeUnknown, StoreUnavailable
from flowkit.message import new_id
from flowkit.ports import Copy
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.conftest import CI
from tests.services.pair import Pair
from tests.services.postgresql import PostgreSQL, find_binaries
from tests.support.databases import rows
from tests.support.shop import Order
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgresql
WAITING = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def pair() -> Iterator[Pair]:
    if find_binaries() is None and not CI:
        pytest.skip("PostgreSQL is not installed: run tests/services/install")
    with closing(Pair(synchronous=True)) as made:
        yield made


@contextmanager
def paused(pair: Pair) -> Iterator[None]:
    """The standby is away: commits wait."""
    with frozen(pair.standby):
        yield


@contextmanager
def frozen(server: PostgreSQL) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def waits(pair: Pair) -> bool:
    """Whether a commit waits for the standby."""
    return bool(pair.primary.execute(f"SELECT pid {WAITING}"))


def cancel(pair: Pair) -> None:
    """Cancel the wait of a commit, as an impatient operator does."""
    wait_until(lambda: waits(pair))
    pair.primary.execute(f"SELECT pg_cancel_backend(pid) {WAITING}")


def test_row_30_a_commit_whose_wait_for_the_standby_was_cancelled_is_unknown(pair: Pair) -> None:
    pair.create_database("row_30")
    url = pair.primary.url("row_30")
    store = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    app = App("shop")
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    with closing(store), Harness(app, url) as harness, paused(pair):
        for _ in range(20):
            with ThreadOf(cancel, pair), store.unit("") as unit, pytest.raises(CommitUnknown, match="standby"):
                unit.witness()
                unit.commit()
        with ThreadOf(cancel, pair), pytest.raises(OutcomeUnknown):
            harness.publish(orders, Order(name="a"))


def test_row_56_what_only_the_primary_knows_as_applied_is_not_acknowledged(pair: Pair) -> None:
    """The commit of a message was cancelled and its redelivery found it applied; then the primary died."""
    pair.create_database("row_56")
    url = pair.primary.url("row_56")
    app = App("shop")
    orders = app.channel("orders", Order)
    ran: list[str] = []
    app.flow(orders, name="accept", concurrency=1)(lambda order: ran.append(order.name))
    with Harness(app, url, broker=True) as harness, ExitStack() as away:
        (lane,) = harness.worker.lanes
        message = Message(new_id(), "test", "orders", b'{"name": "a"}')
        harness.broker.send([Copy(new_id(), message, "shop.accept")])
        away.enter_context(paused(pair))
        with ThreadOf(cancel, pair), suppress(StoreUnavailable):
            lane.step()
        assert ran == ["a"]
        assert harness.balances()["shop.accept"].applied == 1
        assert harness.broker.depths(["shop.accept"]) == {"shop.accept": 1}, "acknowledged although it is unknown"
        with ThreadOf(lane.step):
            wait_until(lambda: waits(pair) or harness.broker.depths(["shop.accept"]) == {"shop.accept": 0})
            acknowledged = harness.broker.depths(["shop.accept"]) == {"shop.accept": 0}
            away.close()
        assert not acknowledged, "acknowledged as a duplicate of what the standby does not have"
        assert harness.broker.depths(["shop.accept"]) == {"shop.accept": 0}
        assert ran == ["a"]


def test_row_31_a_frozen_primary_frees_those_who_wait_for_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel still accepts connections, and acknowledges what is sent. When the standby was promoted, work goes on
    there, and what was in doubt takes effect once."""
    monkeypatch.setattr("flowkit.store.postgresql.dialect.CONNECT_SECONDS", 2)
    monkeypatch.setattr("flowkit.store.postgresql.connection.SILENCE_SECONDS", 1.0)
    app = App("shop")
    orders = app.channel("orders", Order)
    ran: list[str] = []
    app.flow(orders, name="accept", concurrency=1)(lambda order: ran.append(order.name))
    with Harness(app, pair.create_database("row_31")) as harness:
        (lane,) = harness.worker.lanes
        harness.publish(orders, Order(name="a"), id="a")
        with frozen(pair.primary):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="frozen"):
                lane.step()
            assert time.monotonic() - began < 3 * (1 + 2)
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                harness.publish(orders, Order(name="b"), id="b")
            pair.standby.promote()
            alone(pair.standby)
            wait_until(lambda: accepted(harness, orders, "b"))
            wait_until(lambda: lane.step() and harness.balances()["shop.accept"].applied == 2)
        assert sorted(ran) == ["a", "b"]


def test_row_32_an_old_primary_that_comes_back_gets_no_writes(pair: Pair) -> None:
    """It does not know that it was replaced, takes what it is given, and is the first that the URL names. A process
    that has seen the new one knows."""
    url = pair.create_database("row_32")
    if pair.primary.port > pair.standby.port:
        pair.failover()
    old, new = pair.primary, pair.standby
    app = App("shop")
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    with Harness(app, url) as harness:
        harness.publish(orders, Order(name="a"))
        old.stop("immediate")
        new.promote()
        alone(new)
        wait_until(lambda: accepted(harness, orders, "b"))
        old.start()
        alone(old)
        harness.store.dialect.engine.dispose()
        harness.publish(orders, Order(name="c"))
        assert (rows(old), rows(new)) == (1, 3)
        new.stop()
        with pytest.raises(StoreUnavailable, match="is an old primary"):
            harness.publish(orders, Order(name="d"))
        assert rows(old) == 1
        new.start()


def alone(server: PostgreSQL) -> None:
    """Let a server acknowledge what no standby has."""
    server.execute("ALTER SYSTEM RESET synchronous_standby_names")
    server.execute("SELECT pg_reload_conf()")
    wait_until(lambda: server.execute("SHOW synchronous_standby_names") == [("",)])


def accepted(harness: Harness, orders: Channel[Order], name: str) -> bool:
    """Whether the store takes an order now; again under the same id, as clients do."""
    try:
        harness.publish(orders, Order(name=name), id=name)
    except (StoreUnavailable, OutcomeUnknown):
        return False
    return True


class ThreadOf:
    """Calls a function on a thread of its own, which ends with the block."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._thread = threading.Thread(target=function, args=arguments)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
