"""The app that tests run in groups of instances: each effect says which process it is of."""

import os

from sqlalchemy.orm import Session

from flowkit import web
from tests.support.shop import Effect, Order, new_app

app = new_app("front")
orders = web.post("/orders")


@app.flow(orders)
def accept(order: Order, db: Session) -> None:
    db.add(Effect(name=f"{order.name} {os.getpid()}"))
