"""What tests of the objects of a unit of work share."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import Channel
from flowkit.testing import Harness
from tests.support.shop import Order, Unique

NAMES = [str(number) for number in range(10)]
CULPRIT = "4"
OTHERS = [name for name in NAMES if name != CULPRIT]
ISOLATIONS = pytest.mark.parametrize("isolate", ["batch", "savepoint", "single"])
Deed = Callable[[Session], object]


def on(database: str, *values: object) -> Any:
    """Parameters of a test that runs on this database only."""
    return pytest.param(f"{database}_url", *values, marks=[pytest.mark.postgresql] if database == "postgresql" else [])


def publish(harness: Harness, orders: Channel[Order], culprits: tuple[str, ...] = (CULPRIT,)) -> None:
    """Ten orders, all of which come in one batch."""
    for name in NAMES:
        harness.publish(orders, Order(name=name, deed="x" if name in culprits else ""))
    for _ in range(4):
        harness.advance("1s")


def there(harness: Harness, *names: str) -> None:
    with harness.session() as session:
        session.add_all(Unique(name=name) for name in names)
        session.flush()


def swallow(db: Session) -> None:
    db.add(Unique(name="there"))
    try:
        db.flush()
    except IntegrityError:
        """Swallowed."""
