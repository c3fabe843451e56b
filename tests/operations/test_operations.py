"""What operators do, called as a console would: values come back, and nothing is printed or asked."""

import ast
from pathlib import Path

import pytest

import flowkit.operations
from flowkit import RetryPolicy
from flowkit.errors import ConfigError
from flowkit.operations import audit, dead_letters, directions, overview, pending, rollouts, subscriptions
from flowkit.operations.store import operated
from flowkit.ports import DRAINED, PAUSED
from flowkit.testing import Harness
from tests.support.shop import Order, new_app

FLOW = "shop.accept"
TERMINAL = {"print", "input", "sys", "rich", "typer", "getpass"}


def shop(broker: bool = False) -> Harness:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order) -> None:
        if order.deed == "fail":
            raise ValueError("it always fails")

    return Harness(app, broker=broker)


def test_no_use_case_names_a_terminal() -> None:
    for path in Path(flowkit.operations.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        named |= {one.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for one in node.names}
        assert not named & TERMINAL, path.name


@pytest.mark.parametrize("at_broker", [False, True])
def test_what_is_pending_is_the_same_wherever_it_is_asked(at_broker: bool) -> None:
    with shop(broker=True) as harness:
        store, transport = operated(harness.store), harness.services.transport
        harness.publish("orders", Order(name="a"))
        if at_broker:
            while harness.worker.relay.step():
                pass
            harness.worker.relay.flush()
        waiting = pending.waiting(store.ledger, transport, [FLOW])
        assert waiting.queued[FLOW] == (1 if at_broker else 0)
        assert waiting.many(FLOW) == 1
        assert pending.ready(store, transport, [FLOW]) == 1
        assert pending.left(store, transport, [FLOW], broker=True) == (1, 0)
        assert pending.balances(store.ledger, transport)[FLOW].pending == 1
        assert [one.waiting for one in subscriptions.known(store, transport)] == [1]
        assert audit.audit(store, transport, broker=True).balanced
        (state,) = overview.look(store, transport, broker=False).flows.values()
        assert (state.queued, state.rows is None) == ((1, True) if at_broker else (0, False))
        harness.until_quiet()
        assert pending.left(store, transport, [FLOW], broker=True) == (0, 0)


def test_operators_get_values(capsys: pytest.CaptureFixture[str]) -> None:
    with shop() as harness:
        store, transport = operated(harness.store), harness.services.transport
        for number in range(3):
            harness.publish("orders", Order(name=f"{number}", deed="fail"))
        harness.until_quiet()
        letters = store.dead_letters
        wanted = dead_letters.choose(letters, [], FLOW, None)
        assert len(wanted) == 3
        assert dead_letters.refused(letters, wanted) == 0
        assert list(dead_letters.settle(letters, "discard", wanted[:2])) == [(2, 2)]
        assert dead_letters.read(letters, wanted[2]).message.channel == "orders"
        assert overview.look(store, transport, broker=False).flows[FLOW].balance.discarded == 2

        assert directions.scale(store, "shop", 2) == "workers"
        directions.direct(store, PAUSED, [FLOW])
        directed = overview.look(store, transport, broker=False).flows[FLOW].directed
        assert (directed["paused"], directed["workers"], directed["drained"]) == (1, 2, None)
        directions.resume(store, ["shop"])
        directions.direct(store, DRAINED, ["shop"])
        assert directions.drained(store, ["shop"], 10.0) == (0, [])

        store.rollouts.enter("shop", "v1", 30)
        here = rollouts.Fleet(store, "", 30)
        assert here.versions(here.rollout)[0].role == "baseline"
        with pytest.raises(ConfigError, match="no version of app shop is rolled out"):
            rollouts.shift(here, 50)
    assert capsys.readouterr() == ("", "")
