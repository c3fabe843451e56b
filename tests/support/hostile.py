"""Input that no FlowKit made."""

from typing import Any

from sqlalchemy.orm import Session

from flowkit import (
    App,
    RetryPolicy,
)
from flowkit.testing import Harness
from tests.support.shop import Effect, Order, new_app


def harnessed_app() -> App:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    return app


def harnessed(**options: Any) -> Harness:
    return Harness(harnessed_app(), **options)
