"""The app under attack."""

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, Message, RetryPolicy, web


class Base(DeclarativeBase): ...


class Effect(Base):
    """The effect of a message. It has no unique key, so a second effect shows."""

    __tablename__ = "effects"

    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str]
    source: Mapped[str]
    name: Mapped[str]


class Order(BaseModel):
    name: str
    late: bool = False
    """Whether its first attempt fails, so that it waits for a second one."""


RETRY_SECONDS = 3
MOST_BYTES = 16 * 1024 * 1024
app = App("shop", metadata=Base.metadata)
orders = app.channel("orders", Order, shared=True)


@app.flow(orders, retry=RetryPolicy(attempts=5, first=f"{RETRY_SECONDS}s", factor=1, jitter=0))
def accept(order: Order, message: Message, db: Session) -> None:
    if order.late and message.attempt == 1:
        raise ValueError("later")
    db.add(Effect(id=message.id, source=message.source, name=order.name))


@app.flow(web.post("/places"))
def place(order: Order) -> None: ...


@app.flow(web.post("/imports", max_body=MOST_BYTES))
def load(numbers: list[int]) -> None: ...


@app.flow(web.post("/ord", reply=True))
def short(order: Order) -> str:
    return f"short {order.name}"


@app.flow(web.post("/orders/confirm", reply=True))
def confirm(order: Order) -> str:
    return f"confirm {order.name}"


def bearer(head: web.Head) -> str:
    """The principal is what its token says."""
    scheme, _, token = head.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or token not in ("alice", "mallory"):
        raise web.Unauthorized("this token is unknown")
    return token


@app.flow(web.post("/accounts", principal=bearer, reply=True))
def account(order: Order, message: Message) -> str:
    return f"{message.source}: {order.name}"
