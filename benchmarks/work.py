"""The measured reliable work: inbox, one business row and one message onward, in three styles of handler."""

from typing import Literal, get_args

from pydantic import BaseModel
from sqlalchemy import BigInteger, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App

Style = Literal["none", "add", "statement"]
STYLES: tuple[Style, ...] = get_args(Style)
INSERT = text("INSERT INTO bench_rows (id, total) VALUES (:id, :total)")


class Base(DeclarativeBase):
    """The user's own tables."""


class Row(Base):
    """The business row."""

    __tablename__ = "bench_rows"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    total: Mapped[float]


class Order(BaseModel):
    """The message, of about 250 bytes. `at` is when it was meant to be sent."""

    id: int
    at: float = 0.0
    total: float = 9.5
    customer: str = "c" * 80
    note: str = "n" * 90


def bench_app(style: Style, shared: bool = False) -> App:
    """One flow that does the work, and one that would get the message onward: only the first is run. `shared`: other
    programs may send to the first."""
    app = App("bench", metadata=Base.metadata)
    orders, onward = app.channel("orders", Order, shared=shared), app.channel("onward", Order)

    if style == "none":

        @app.flow(orders, to=onward, name="work")
        def passed(order: Order) -> Order:
            return order
    elif style == "add":

        @app.flow(orders, to=onward, name="work")
        def added(order: Order, db: Session) -> Order:
            db.add(Row(id=order.id, total=order.total))
            return order
    else:

        @app.flow(orders, to=onward, name="work")
        def stated(order: Order, db: Session) -> Order:
            db.execute(INSERT, {"id": order.id, "total": order.total})
            return order

    @app.flow(onward)
    def after(order: Order) -> None:
        """Its copies stay in the queue."""

    return app
