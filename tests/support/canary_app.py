"""The app whose handlers fail in every way that may repeat the data of their message."""

from typing import Any

from pydantic import BaseModel, field_validator
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from flowkit import Outbox, RetryPolicy
from tests.support.shop import Effect, Order, Unique, new_app

app = new_app("canary")
orders = app.channel("orders", dict[str, Any])
others = app.channel("others", dict[str, int], optional=True)
ONCE = RetryPolicy(attempts=1)


class Strict(BaseModel):
    name: int


class Picky(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def refuse(cls, value: str) -> str:
        raise ValueError(f"{value} is refused")


@app.flow(orders, retry=ONCE)
def duplicate(order: Order, db: Session) -> None:
    db.add_all([Unique(name=order.name), Unique(name=order.name)])
    db.flush()


@app.flow(orders, retry=ONCE)
def late(order: Order, db: Session) -> None:
    """Fails at the flush of FlowKit."""
    db.execute(insert(Unique), [{"name": order.name}, {"name": order.name}])


@app.flow(orders, retry=ONCE)
def cast(order: Order, db: Session) -> None:
    db.execute(text("SELECT CAST(:name AS integer) FROM nowhere WHERE a = :name"), {"name": order.name})


@app.flow(orders, retry=ONCE)
def literal(order: Order, db: Session) -> None:
    db.execute(text(f"SELECT '{order.name}' FROM nowhere"))


@app.flow(orders, retry=ONCE)
def setting(order: Order, db: Session) -> None:
    db.execute(text(f"SET LOCAL app.card = '{order.name}'"))
    raise ValueError(order.name)


@app.flow(orders, retry=ONCE)
def bound(order: Order, db: Session) -> None:
    db.execute(insert(Effect), {"name": order})


@app.flow(orders, retry=ONCE)
def parse(order: Order) -> None:
    int(order.name)


@app.flow(orders, retry=ONCE)
def look(order: Order) -> None:
    {"a": 1}[order.name]


@app.flow(orders, retry=ONCE)
def say(order: Order) -> None:
    raise ValueError(f"the card {order.name} is refused")


@app.flow(orders, retry=ONCE)
def chain(order: Order) -> None:
    try:
        say(order)
    except ValueError as error:
        raise RuntimeError(f"after {error}") from error


@app.flow(orders, to=others, retry=ONCE)
def send(order: Order, outbox: Outbox) -> None:
    outbox.send(others, {order.name: object()})


@app.flow(orders, retry=ONCE)
def model(order: Order) -> None:
    Strict.model_validate({"name": order.name})


@app.flow(orders, retry=ONCE)
def undecodable(order: Strict) -> None:
    pass


@app.flow(orders, retry=ONCE)
def picky(order: Picky) -> None:
    pass


@app.flow(orders, retry=RetryPolicy(attempts=2, first="10ms", jitter=0))
async def waiting(order: Order) -> None:
    raise LookupError(f"{order.name} is not there")
