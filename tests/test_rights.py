"""The command line on databases that are not set up as FlowKit needs them: rights, encodings."""

import sys
from collections.abc import Callable

import pytest

from flowkit.cli import main
from flowkit.store import tables
from tests.services.postgresql import PostgreSQL
from tests.shop import Order, new_app, running
from tests.test_postgresql import administer, role_of

pytestmark = pytest.mark.postgresql
Command = Callable[..., tuple[int, str]]


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
WITH_APP = [("check", "tests.web_app:app"), ("run", "tests.web_app:app")]


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
