"""The command line on databases that are not set up as FlowKit needs them: rights, encodings."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from flowkit import Objects, RetryPolicy
from flowkit.cli import main
from flowkit.errors import Reused
from flowkit.message import new_id
from flowkit.ports import Fence, Retention
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.store import tables
from tests.services.postgresql import PostgreSQL
from tests.support import ROOT
from tests.support.databases import working
from tests.support.roles import GRANTS, administer, prepare, role_of
from tests.support.shop import FAST, Effect, Order, new_app, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgresql
Command = Callable[..., tuple[int, str]]
SETTINGS = partial(Settings, broker_url="", group="first", version="1")
Words = tuple[str, ...]


@pytest.fixture
def flowkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on a database. Returns its exit code and all that it said."""

    def run(url: str, *words: str) -> tuple[int, str]:
        monkeypatch.setenv("FLOWKIT_DATABASE_URL", url)
        monkeypatch.setenv("FLOWKIT_BROKER_URL", "")
        monkeypatch.setattr(sys, "argv", ["flowkit", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


COMMANDS = [("db", "upgrade"), ("db", "check"), ("status",), ("audit",), ("dead", "list")]
WITH_APP = [("check", "tests.support.web_app:app"), ("run", "tests.support.web_app:app")]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused_by_name(
    postgresql: PostgreSQL, flowkit: Command, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    postgresql.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    try:
        for words in (*COMMANDS, *WITH_APP):
            code, said = flowkit(postgresql.url(name), *words)
            assert code == 2, said
            assert encoding in said and "UTF8" in said and said.count("\n") == 1, said
    finally:
        postgresql.drop_database(name)


def test_texts_travel_as_utf8_whatever_the_client_is_set_to(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    app = new_app()
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    with running(app, postgresql_url + "?client_encoding=latin1") as harness:
        harness.publish(orders, Order(name="a"), key="鍵 🔑")
        harness.until_quiet()
        assert harness.balances()["shop.accept"].applied == 1


def test_a_role_that_may_not_create_tables_is_told_which_right_it_needs(postgresql_url: str, flowkit: Command) -> None:
    with role_of(postgresql_url) as url:
        administer(
            postgresql_url,
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
            "GRANT USAGE ON SCHEMA public TO worker",
        )
        code, said = flowkit(url, "db", "upgrade")
        assert code == 2 and said.count("\n") <= 5, said
        assert "role worker" in said and "GRANT CREATE, USAGE ON SCHEMA public TO worker" in said


def test_a_role_that_does_not_own_the_tables_cannot_upgrade_them(postgresql_url: str, flowkit: Command) -> None:
    with role_of(postgresql_url) as url:
        assert flowkit(url, "db", "upgrade") == (0, f"schema {tables.VERSION}\n"), "there is nothing to do"
        administer(
            postgresql_url, "UPDATE flowkit_version SET version_num = '0003'", "GRANT CREATE ON SCHEMA public TO worker"
        )
        code, said = flowkit(url, "db", "upgrade")
        assert code == 2 and said.count("\n") <= 5, said
        assert "owner" in said and "role worker" in said


def test_a_role_without_rights_sees_one_line_and_no_traceback(postgresql_url: str, flowkit: Command) -> None:
    with role_of(postgresql_url) as url:
        administer(
            postgresql_url, *(f"REVOKE ALL ON {one} FROM worker" for one in ("flowkit_workers", "flowkit_counters"))
        )
        for word in ("status", "audit"):
            code, said = flowkit(url, word)
            assert code == 3 and said.count("\n") == 1 and "permission denied for table flowkit_" in said, said
        administer(postgresql_url, "REVOKE ALL ON flowkit_version FROM worker")
        for words in (*COMMANDS, *WITH_APP):
            code, said = flowkit(url, *words)
            assert code in (2, 3) and said.count("\n") <= 5, said
            assert "permission denied for table flowkit_version" in said


def test_the_rights_of_the_documentation_are_of_every_table() -> None:
    assert {one for one in re.findall(r"flowkit_\w+", GRANTS)} == set(tables.metadata.tables)


def test_a_role_with_the_rights_of_the_documentation_runs_flows(postgresql_url: str, flowkit: Command) -> None:
    """In a group, so that commits are fenced; with retries, dead letters, objects, retention and what people direct."""
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session, objects: Objects) -> None:
        if order.deed == "fail":
            raise ValueError("no")
        objects.put(order.name, 1, ttl="1s")
        db.add(Effect(name=order.name))

    with role_of(postgresql_url) as url, closing(connect(SETTINGS(database_url=url))) as services:
        store: Any = services.store
        standing = store.groups.stand(app.name, "first", 60, ready=True)
        store.fence = Fence(app.name, "first", standing.token)
        with working(app, services):
            for number in range(3):
                app.publish(orders, Order(name=str(number), deed="fail" if number == 2 else ""))
            wait_until(lambda: store.ledger.unfinished(["shop.accept"]) == 0)
            (letter,) = store.dead_letters.select()
            directed: list[Words] = [("pause", "shop.accept"), ("dead", "retry", letter), ("resume", "shop.accept")]
            for words in directed:
                code, said = flowkit(url, *words)
                assert code == 0, said
            wait_until(lambda: store.ledger.unfinished(["shop.accept"]) == 0)
            (letter,) = store.dead_letters.select()
            assert flowkit(url, "dead", "discard", letter)[0] == 0
            store.retention.clean(Retention(app.name, list(app.flows), ["orders"], 0.0, 0.0), new_id())
        store.groups.step_down(app.name, "first", 0)
        for words in (*COMMANDS, ("rollout", "status", "--app", "shop")):
            code, said = flowkit(url, *words)
            assert code == 0, said


def test_a_right_that_is_taken_away_holds_a_message_up_and_costs_it_nothing(postgresql_url: str) -> None:
    app, ran = new_app(), Counter[str]()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order) -> None:
        ran[order.name] += 1
        raise ValueError("the failure of the handler")

    with role_of(postgresql_url) as url, closing(connect(Settings(database_url=url))) as services:
        store: Any = services.store
        administer(postgresql_url, "REVOKE ALL ON flowkit_dead FROM worker")
        with working(app, services) as worker:
            app.publish(orders, Order(name="a"))
            wait_until(lambda: worker.state == "unready" and ran["a"] > 1)
            administer(postgresql_url, "GRANT SELECT, INSERT, UPDATE, DELETE ON flowkit_dead TO worker")
            wait_until(lambda: store.ledger.unfinished(["shop.accept"]) == 0)
        (letter,) = store.dead_letters.read(store.dead_letters.select())
        assert letter.error == "ValueError: the failure of the handler" and letter.attempts == 1
        assert ran["a"] < 50, "it waits between the tries"


def test_a_right_that_only_retention_lacks_holds_no_message_up(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, ran = new_app(), Counter[str]()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order) -> None:
        ran[order.name] += 1

    with role_of(postgresql_url) as url, closing(connect(Settings(database_url=url))) as services:
        administer(postgresql_url, "REVOKE ALL ON flowkit_dead FROM worker")
        with working(app, services):
            wait_until(lambda: "permission denied for table flowkit_dead" in caplog.text)
            app.publish(orders, Order(name="a"))
            wait_until(lambda: ran["a"] == 1)


GRANTED = {
    "GRANT CREATE ON SCHEMA public TO worker": "may create tables and functions in schema public",
    "ALTER ROLE worker BYPASSRLS": "bypasses row security",
    "ALTER TABLE flowkit_messages OWNER TO worker": "owns FlowKit's tables",
}
"""A right that no worker needs -> what is said of it."""


def test_a_role_that_may_do_more_than_workers_need_is_told_of(postgresql_url: str, flowkit: Command) -> None:
    """As a note and no warning: the role of the first steps may do everything."""

    def noted(url: str) -> str:
        code, said = flowkit(url, "check", "tests.support.web_app:app")
        assert code == 0 and "flows, " in said and "warnings" not in said, said
        return "\n".join(line for line in said.splitlines() if line.startswith("role "))

    with role_of(postgresql_url) as url:
        assert noted(url) == ""
        for number, (statement, told) in enumerate(GRANTED.items(), 1):
            administer(postgresql_url, statement)
            lines = noted(url)
            assert (lines.count("role worker"), told in lines) == (number, True), lines
        administer(postgresql_url, "ALTER ROLE worker SUPERUSER")
        assert re.fullmatch(r"role worker of FLOWKIT_DATABASE_URL is a superuser.*", noted(url))


PAGE = (ROOT / "docs" / "guides" / "security.md").read_text()
LESS = {role: sql for role in ("publisher", "monitor") for sql in PAGE.split("```sql\n") if f" TO {role};" in sql}
"""Role of docs/guides/security.md -> the statements that give it its rights."""


@contextmanager
def role(url: str, name: str) -> Iterator[str]:
    """A role with the rights of docs/guides/security.md. Yields its URL."""
    prepare(url)
    administer(url, f"CREATE ROLE {name} LOGIN PASSWORD 'secret'", LESS[name].split("```")[0])
    try:
        yield make_url(url).set(username=name, password="secret").render_as_string(hide_password=False)
    finally:
        administer(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def refuses(url: str, *statements: str) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    for one in statements:
        with psycopg.connect(plain) as asking, pytest.raises(psycopg.errors.InsufficientPrivilege):
            asking.execute(one)
            pytest.fail(f"it may {one}", pytrace=False)


READS = ("SELECT body FROM flowkit_messages", "SELECT body FROM flowkit_dead", "SELECT * FROM flowkit_keys")
ENDS = (
    "DELETE FROM flowkit_messages",
    "UPDATE flowkit_messages SET due = 0",
    "DELETE FROM flowkit_inbox",
    "UPDATE flowkit_meta SET value = ''",
    "DELETE FROM flowkit_subscriptions",
    "UPDATE flowkit_subscriptions SET channel = ''",
)


def test_a_role_that_publishes_can_do_nothing_else(postgresql_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    with role(postgresql_url, "publisher") as url:
        with closing(connect(Settings(database_url=postgresql_url, broker_url=""))) as services:
            services.store.subscribers.add({"shop.accept": "orders"})
            app.connect(connect(Settings(database_url=url, broker_url="")))
            with closing(app):
                assert app.publish(orders, Order(name="a"), id="1") == "1"
                assert app.publish(orders, Order(name="a"), id="1") == "1", "sent again"
                with pytest.raises(Reused):
                    app.publish(orders, Order(name="b"), id="1")
            assert services.store.ledger.pending(["shop.accept"]).now == 1
        refuses(url, *READS, *ENDS)


def test_a_role_that_monitors_sees_no_message(postgresql_url: str, flowkit: Command) -> None:
    with role(postgresql_url, "monitor") as url:
        for words in (("status",), ("audit",)):
            code, said = flowkit(url, *words)
            assert code == 0, said
        refuses(url, *READS, *ENDS, "INSERT INTO flowkit_messages DEFAULT VALUES", "SELECT * FROM flowkit_meta")


@pytest.mark.rabbitmq
def test_the_rights_of_a_worker_are_enough_with_a_broker(postgresql_url: str, rabbitmq_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    done: list[str] = []
    app.flow(orders, name="accept")(lambda order: done.append(order.name))
    with (
        role_of(postgresql_url) as url,
        closing(connect(Settings(database_url=url, broker_url=rabbitmq_url))) as services,
        working(app, services),
    ):
        app.publish(orders, Order(name="a"))
        wait_until(lambda: done == ["a"])
