"""The shop example: its flows in memory and on each database, and the web application beside them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from examples.shop import flows, web
from flowkit import sqlite_driver
from flowkit.errors import ConfigError
from flowkit.testing import Harness
from tests.support import ROOT

ORDER = flows.Order(id="A1", item="tea", quantity=2, email="someone@example.org")
TEA = flows.Delivery(item="tea", quantity=10, cents=450)


@pytest.fixture(autouse=True)
def mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mail"
    monkeypatch.setenv("SHOP_MAIL_DIR", str(folder))
    monkeypatch.delenv("SHOP_FLAKY_MAIL", raising=False)
    return folder


@pytest.fixture
def harness() -> Iterator[Harness]:
    with Harness(flows.app) as harness:
        yield harness


def run(harness: Harness) -> None:
    """Stock and an order, through every flow."""
    harness.publish(flows.delivered, TEA)
    harness.until_quiet()
    harness.publish(flows.received, ORDER)
    harness.until_quiet()


def count(harness: Harness, table: type[flows.Base]) -> int:
    with harness.session() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def stock(harness: Harness) -> int:
    with harness.session() as session:
        return session.get_one(flows.StockRow, "tea").quantity


def balanced(harness: Harness) -> bool:
    return all(balance.balanced for balance in harness.balances().values())


def check_delivered(harness: Harness, mails: Path) -> None:
    assert not harness.dead()
    assert balanced(harness)
    assert harness.sent(flows.issued) == [flows.Invoice(order="A1", email="someone@example.org", cents=900)]
    assert (count(harness, flows.OrderRow), stock(harness), count(harness, flows.InvoiceRow)) == (1, 8, 1)
    (sent,) = mails.iterdir()
    mail = message_from_bytes(sent.read_bytes(), policy=policy.default)
    assert (mail["To"], mail["Subject"]) == ("someone@example.org", "Your order A1")
    assert "Please pay 9.00." in mail.as_string()


def test_an_order_becomes_a_row_an_invoice_and_a_mail(harness: Harness, mails: Path) -> None:
    run(harness)
    check_delivered(harness, mails)


def test_the_same_on_each_database(database_url: str, mails: Path) -> None:
    with Harness(flows.app, database_url) as harness:
        run(harness)
        check_delivered(harness, mails)


@pytest.mark.processes
@pytest.mark.postgresql
def test_the_same_through_rabbitmq(
    postgresql_url: str, rabbitmq_url: str, mails: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", postgresql_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", rabbitmq_url)
    engine = create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    flows.Base.metadata.create_all(engine)

    def flowkit(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "flowkit", *arguments], cwd=ROOT, check=True, timeout=120)

    flowkit("db", "upgrade")
    for channel, value in (("stock.delivered", TEA), ("orders.received", ORDER)):
        flows.app.publish(channel, value)
        flowkit("run", "examples/shop/flows.py", "--until-idle")
    flows.app.close()
    with Session(engine) as session:
        assert session.get_one(flows.StockRow, "tea").quantity == 8
        assert session.get_one(flows.InvoiceRow, "A1").cents == 900
    engine.dispose()
    assert len(list(mails.iterdir())) == 1
    flowkit("audit")


def test_a_mail_is_tried_again_when_the_server_hangs_up(mails: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_FLAKY_MAIL", "1")
    with Harness(flows.app) as harness:
        run(harness)
        assert not list(mails.iterdir())
        assert harness.balances()["shop.mail"].pending == 1
        harness.advance("100ms")
        assert not list(mails.iterdir())
        harness.advance("200ms")
        check_delivered(harness, mails)


def test_a_mail_sent_again_is_the_same_mail(mails: Path) -> None:
    server, letter = flows.MailFile(), EmailMessage()
    for _ in range(2):
        server.send("../key", letter)
    assert [one.name for one in mails.iterdir()] == ["..%2Fkey.eml"]


def test_an_order_out_of_stock_is_dead_until_it_is_restocked_and_sent_again(harness: Harness, mails: Path) -> None:
    harness.publish(flows.received, ORDER)
    harness.until_quiet()
    (letter,) = harness.dead()
    assert (letter.flow, letter.attempts, letter.error) == ("shop.reserve", 1, "Reject: out of stock: tea")
    assert count(harness, flows.InvoiceRow) == 0

    harness.publish(flows.delivered, TEA)
    harness.until_quiet()
    assert harness.store.dead_letters.retry([letter.letter]) == 1
    harness.until_quiet()
    check_delivered(harness, mails)


def test_an_order_takes_all_its_pieces_or_none(harness: Harness) -> None:
    run(harness)
    harness.publish(flows.received, ORDER.model_copy(update={"id": "A2", "quantity": 9}))
    harness.until_quiet()
    assert len(harness.dead()) == 1
    assert stock(harness) == 8


# ---------------------------------------------------------------- the web application


@pytest.fixture
def shop(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """The flows on a real database, which the web application finds by its settings."""
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    with Harness(flows.app, database_url) as harness:
        yield harness


@pytest.fixture
def port(shop: Harness) -> Iterator[int]:
    with web.Server(0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def engine(shop: Harness) -> Iterator[Engine]:
    engine = web.open_engine()
    yield engine
    engine.dispose()


def post(port: int, body: str, path: str = "/orders") -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection("localhost", port, timeout=30)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_posted_order_runs_through_the_flows_once(shop: Harness, port: int, mails: Path) -> None:
    shop.publish(flows.delivered, TEA)
    shop.until_quiet()
    status, answer = post(port, ORDER.model_dump_json())
    assert status == 202
    with shop.session() as session:
        assert session.get_one(web.RequestRow, "A1").message == answer["message"]
    shop.until_quiet()
    check_delivered(shop, mails)


def test_an_order_posted_again_is_refused_and_publishes_nothing(shop: Harness, port: int) -> None:
    assert post(port, ORDER.model_dump_json())[0] == 202
    assert post(port, ORDER.model_dump_json()) == (400, {"error": "there is an order with this id"})
    assert shop.balances()["shop.accept"].accepted == 1
    assert count(shop, web.RequestRow) == 1
    assert balanced(shop)


@pytest.mark.parametrize(
    ("path", "body", "status"), [("/orders", '{"id": "A1"}', 400), ("/orders", "", 400), ("/", "{}", 404)]
)
def test_what_is_no_order_is_refused(shop: Harness, port: int, path: str, body: str, status: int) -> None:
    assert post(port, body, path)[0] == status
    assert count(shop, web.RequestRow) == 0


def test_the_web_application_takes_orders_before_any_worker_ran(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    try:
        with web.Server(0) as server:
            web.take(server.engine, ORDER)
    finally:
        flows.app.close()
    with Harness(flows.app, sqlite_url) as harness:
        harness.until_quiet()
        assert harness.sent(flows.accepted) == [ORDER]


def test_a_rolled_back_transaction_publishes_nothing(shop: Harness, engine: Engine) -> None:
    with Session(engine) as session:
        id = flows.app.outbox(session).send(flows.received, ORDER)
        session.rollback()
        shop.until_quiet()
        assert not shop.outcomes
        # Nor is the id taken: the same message can be sent after all.
        assert flows.app.outbox(session).send(flows.received, ORDER, id=id) == id
        session.commit()
    shop.until_quiet()
    assert shop.balances()["shop.accept"].applied == 1


def test_a_session_on_another_database_is_refused(shop: Harness, tmp_path: Path) -> None:
    other = create_engine(f"sqlite:///{tmp_path}/other.db", module=sqlite_driver())
    try:
        with Session(other) as session, pytest.raises(ConfigError, match="writes to another database"):
            flows.app.outbox(session)
    finally:
        other.dispose()
