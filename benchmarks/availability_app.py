"""The app whose availability is measured: it records each message that takes effect, and the time."""

import time

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, Message, web


class Base(DeclarativeBase):
    pass


class Applied(Base):
    """An effect. No unique key over the id: a second one shows."""

    __tablename__ = "applied"

    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str]
    at: Mapped[float]
    version: Mapped[str]


class Order(BaseModel):
    number: int


BAD = "bad"
"""The version that fails one message of ten."""
app = App("availability", metadata=Base.metadata)


@app.flow(web.post("/orders"))
def accept(order: Order, message: Message, db: Session) -> None:
    version = app.services().settings.version
    if version == BAD and order.number % 10 == 7:
        raise RuntimeError("one of ten fails")
    db.add(Applied(id=message.id, at=time.time(), version=version))
