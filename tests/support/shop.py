"""A small app for the tests: it writes one row for each message, and does what the message says."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from sqlalchemy import String, Text, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, RetryPolicy

if TYPE_CHECKING:
    from flowkit.testing import Harness


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """What a handler did. No unique key: a second effect shows."""

    __tablename__ = "effects"

    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(Text)


class Unique(Base):
    """A table that refuses a second row of a name, at once."""

    __tablename__ = "uniques"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)


class Order(BaseModel):
    name: str
    deed: str = ""


FAST = RetryPolicy(attempts=3, first="10ms", factor=1, jitter=0)


def new_app(name: str = "shop") -> App:
    """An app without flows."""
    return App(name, metadata=Base.metadata)


def effects(session: Session) -> dict[str, int]:
    """name -> how many effects."""
    rows = session.execute(select(Effect.name, func.count()).group_by(Effect.name)).all()
    return {name: count for name, count in rows}


@contextlib.contextmanager
def running(app: App, url: str, **options: Any) -> "Iterator[Harness]":
    """A harness whose ledger must balance at its end."""
    from flowkit.testing import Harness  # workers import this module too, and start without it

    with Harness(app, url, **options) as harness:
        yield harness
        for flow, balance in harness.balances().items():
            assert balance.balanced, f"{flow}: {balance}"


def once(harness: "Harness", *names: str) -> None:
    """Each of these names, and nothing else, took effect once."""
    with harness.session() as session:
        assert effects(session) == dict.fromkeys(names, 1)


COMMIT = text("COMMIT")
