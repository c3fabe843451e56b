"""What tests of the messages of one batch share."""

from sqlalchemy import text

from flowkit import Channel, RetryPolicy
from flowkit.testing import Harness
from tests.support.shop import Order

NAMES = [str(number) for number in range(10)]
CULPRIT = "4"
OTHERS = [name for name in NAMES if name != CULPRIT]
INSERT = text("INSERT INTO effects (name) VALUES (:name)")
ONCE = RetryPolicy(attempts=1)


def publish(harness: Harness, orders: Channel[Order]) -> None:
    """Ten orders, all of which come in one batch."""
    for name in NAMES:
        harness.publish(orders, Order(name=name))
    for _ in range(4):
        harness.advance("1s")
