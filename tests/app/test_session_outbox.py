"""Publishing inside the caller's own transaction."""

from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import ConfigError
from flowkit.testing import Harness
from tests.support.shop import Effect, Order, Unique, new_app, once

pytestmark = pytest.mark.migrated


@pytest.fixture
def harness(database_url: str) -> Any:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with Harness(app, database_url) as made:
        yield made


def own_session(harness: Harness) -> Session:
    """A session in transactions of its own, on the store's database."""
    return Session(harness.store.dialect.engine.execution_options(isolation_level="SERIALIZABLE"))


def test_what_a_session_sends_commits_with_it(harness: Harness) -> None:
    with own_session(harness) as session:
        session.add(Unique(name="mine"))
        harness.app.outbox(session).send("orders", Order(name="a"))
        session.commit()
        harness.app.outbox(session).send("orders", Order(name="b"))
        session.rollback()
    harness.until_quiet()
    once(harness, "a")
    assert harness.balances()["shop.accept"].balanced


def test_the_same_id_is_accepted_once_whichever_way_it_comes(harness: Harness) -> None:
    with own_session(harness) as session:
        harness.app.outbox(session).send("orders", Order(name="a"), id="order-1")
        session.commit()
    harness.publish("orders", Order(name="a"), id="order-1")
    harness.until_quiet()
    once(harness, "a")


def test_an_error_of_the_callers_own_rows_is_told_as_such(harness: Harness) -> None:
    with own_session(harness) as session:
        session.add(Unique(name="twice"))
        session.commit()
        session.add(Unique(name="twice"))
        with pytest.raises(IntegrityError):
            harness.app.outbox(session).send("orders", Order(name="a"))


def test_workers_are_woken_by_the_commit_and_not_by_a_savepoint(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[object] = []
    monkeypatch.setattr(harness.store.database, "notify", woken.append)
    with own_session(harness) as session:
        harness.app.outbox(session).send("orders", Order(name="a"))
        harness.app.outbox(session).send("orders", Order(name="b"))
        with session.begin_nested():
            session.add(Unique(name="nested"))
        assert woken == []
        session.commit()
        assert len(woken) == 1


def test_a_session_on_another_database_is_refused(harness: Harness, tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    with Session(engine) as session, pytest.raises(ConfigError, match="another database"):
        harness.app.outbox(session)
    engine.dispose()
    with pytest.raises(ConfigError, match=r"takes a sqlalchemy\.orm\.Session, not str"):
        harness.app.outbox("session")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_session_in_autocommit_is_in_a_transaction_from_then_on(harness: Harness, end: str) -> None:
    engine = harness.store.dialect.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        harness.app.outbox(session).send("orders", Order(name="a"))
        session.add(Unique(name="mine"))
        getattr(session, end)()
        session.rollback()
        assert session.get(Unique, "mine") is None or end == "commit"
    harness.until_quiet()
    once(harness, *["a"] * (end == "commit"))
