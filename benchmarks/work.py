"""The reliable work that is measured: an order with a 250-byte body, in three styles of handler."""

from typing import Literal

from pydantic import BaseModel
from sqlalchemy import BigInteger, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App

Style = Literal["none", "add", "statement"]
STYLES: dict[Style, str] = {
    "none": "no database in the handler",
    "add": "db.add of one row",
    "statement": "one explicit statement",
}
INSERT = text("INSERT INTO bench_rows (id, total) VALUES (:id, :total)")


class Base(DeclarativeBase):
    pass


class Row(Base):
    """The business row."""

    __tablename__ = "bench_rows"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    total: Mapped[float]


class Order(BaseModel):
    """The message. `at` is when it was meant to be sent."""

    id: int
    at: float = 0.0
    total: float = 9.5
    customer: str = "c" * 80
    note: str = "n" * 90


def write(style: Style, order: Order, db: Session) -> None:
    """The business row, the way the style says."""
    if style == "add":
        db.add(Row(id=order.id, total=order.total))
    elif style == "statement":
        db.execute(INSERT, {"id": order.id, "total": order.total})


def bench_app(style: Style) -> App:
    """One flow that does the work, and one that would get the onward message: only the first is run."""
    app = App("bench", metadata=Base.metadata)
    orders, onward = app.channel("orders", Order), app.channel("onward", Order)

    if style == "none":

        @app.flow(orders, to=onward, name="work")
        def pass_on(order: Order) -> Order:
            return order
    else:

        @app.flow(orders, to=onward, name="work")
        def work(order: Order, db: Session) -> Order:
            write(style, order, db)
            return order

    @app.flow(onward)
    def after(order: Order) -> None:
        """Its copies stay in the queue."""

    return app
