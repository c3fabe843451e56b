"""What tests of `crash_everywhere` share."""

import datetime
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flowkit import App
from flowkit.testing import Harness
from tests.support.shop import Order


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    at: Mapped[datetime.datetime]


FEW = 10
"""Points for tests of how ends are compared: others kill workers at every point."""


def publish(*names: str, deed: str = "") -> Callable[[Harness], None]:
    def scenario(harness: Harness) -> None:
        for name in names:
            harness.publish("orders", Order(name=name, deed=deed))

    return scenario


def careless(directory: Path) -> App:
    app = App("careless")

    @app.flow(app.channel("orders", Order))
    def write(order: Order) -> None:
        with (directory / "log").open("a") as log:
            log.write(f"{order.name}\n")

    return app
