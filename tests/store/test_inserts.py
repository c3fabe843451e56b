"""Plain INSERTs of handlers go to PostgreSQL together, and no handler notices."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal

import pytest
from sqlalchemy import BigInteger, Connection, insert, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, RetryPolicy
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store.postgresql.inserts import plain_insert
from flowkit.testing import Harness
from tests.support.shop import Order


class Base(DeclarativeBase):
    """Of this file."""


class Line(Base):
    __tablename__ = "lines"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str | None]


INSERT = text("INSERT INTO lines (id, name) VALUES (:id, :name)")
UPDATE = text("UPDATE lines SET name = name || '!' WHERE id = :id")
MERGE = text("INSERT INTO lines (id, name) VALUES (:id, :name) ON CONFLICT DO NOTHING")
COUNT = text("SELECT count(*) FROM lines")
Deed = Callable[[Session, int], object]
pytestmark = [pytest.mark.migrated, pytest.mark.postgresql]


class Seen(list[tuple[str, int]]):
    """The statements that went to the server during the batch, and how many rows each had."""

    def of(self, table: str) -> list[int]:
        return [rows for statement, rows in self if f"INTO {table}" in statement]


@pytest.fixture
def run(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """Run one batch of ten messages, 0 to 9, whose handler is this deed. Checks that all are applied."""

    def play(deed: Deed, *, failing: int = 0, isolate: Literal["batch", "single"] = "batch") -> Seen:
        app = App("shop", metadata=Base.metadata)
        orders = app.channel("orders", Order)

        @app.flow(orders, retry=RetryPolicy(attempts=1), isolate=isolate)
        def accept(order: Order, db: Session) -> None:
            deed(db, int(order.name))

        seen = Seen()
        with Harness(app, postgresql_url) as harness:
            app.publish_many(orders, [Order(name=str(number)) for number in range(10)])
            execute = harness.store.dialect.execute

            def note(cursor: object, statement: str, rows: Sequence[Any]) -> None:
                seen.append((statement, len(rows)))
                execute(cursor, statement, rows)

            monkeypatch.setattr(harness.store.dialect, "execute", note)
            harness.until_quiet()
            balance = harness.balances()["shop.accept"]
            assert (balance.applied, balance.dead) == (10 - failing, failing)
            assert balance.balanced
        return seen

    return play


@pytest.fixture
def lines(postgresql_url: str) -> Callable[[], dict[int, str]]:
    """What is in the table."""

    def read() -> dict[int, str]:
        with closing(open_store(Settings(database_url=postgresql_url))) as store, store.unit("") as unit:
            return {id: str(name) for id, name in unit.read("SELECT id, name FROM lines")}

    return read


EVERY = {number: str(number) for number in range(10)}
Run = Callable[..., Seen]
Lines = Callable[[], dict[int, str]]


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(lambda db, n: db.add(Line(id=n, name=str(n))), id="add"),
        pytest.param(lambda db, n: db.execute(INSERT, {"id": n, "name": str(n)}), id="text"),
        pytest.param(lambda db, n: db.execute(insert(Line).values(id=n, name=str(n))), id="core"),
        pytest.param(lambda db, n: db.connection().execute(INSERT, {"id": n, "name": str(n)}), id="connection"),
    ],
)
def test_those_of_a_batch_are_one_statement(run: Run, lines: Lines, deed: Deed) -> None:
    assert run(deed).of("lines") == [10]
    assert lines() == EVERY


def test_more_than_a_statement_holds_are_several(run: Run, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.store.postgresql.dialect.PARAMETERS", 7)
    run(lambda db, n: db.add(Line(id=n, name=str(n))))
    assert lines() == EVERY


def test_a_handler_reads_what_it_wrote(run: Run, lines: Lines) -> None:
    counts: list[int] = []

    def deed(db: Session, number: int) -> None:
        db.execute(INSERT, {"id": number, "name": str(number)})
        if number % 2:
            counts.append(db.execute(COUNT).scalar_one())

    assert run(deed).of("lines") == [2] * 5
    assert counts == [2, 4, 6, 8, 10]
    assert lines() == EVERY


def test_other_statements_come_after_those_that_wait(run: Run, lines: Lines) -> None:
    def deed(db: Session, number: int) -> None:
        db.add(Line(id=number, name=str(number)))
        db.execute(UPDATE, {"id": number})

    run(deed)
    assert lines() == {number: f"{number}!" for number in range(10)}


def test_the_drivers_own_statements_come_after_those_that_wait(run: Run, lines: Lines) -> None:
    def deed(db: Session, number: int) -> None:
        db.execute(INSERT, {"id": number, "name": str(number)})
        driver = db.connection().connection.driver_connection
        assert driver is not None
        assert driver.execute("UPDATE lines SET name = name || '!' WHERE id = %s", (number,)).rowcount == 1

    run(deed)
    assert lines() == {number: f"{number}!" for number in range(10)}


def test_a_cursor_that_was_taken_before_sees_what_is_inserted_later(run: Run, lines: Lines) -> None:
    seen: list[object] = []

    def deed(db: Session, number: int) -> None:
        driver = db.connection().connection.driver_connection
        assert driver is not None
        cursor = driver.cursor()
        db.execute(INSERT, {"id": number, "name": str(number)})
        seen.append(cursor.execute("SELECT count(*) FROM lines").fetchone())

    run(deed)
    assert seen == [(number + 1,) for number in range(10)]
    assert lines() == EVERY


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(lambda db, n: db.add(Line(id=n // 2, name=str(n))), id="add"),
        pytest.param(lambda db, n: db.execute(INSERT, {"id": n // 2, "name": str(n)}), id="text"),
    ],
)
def test_a_refused_one_costs_its_own_message_only(run: Run, lines: Lines, deed: Deed) -> None:
    run(deed, failing=5)
    assert lines() == {number: str(2 * number) for number in range(5)}


def test_who_guards_an_insert_is_told_at_once(run: Run, lines: Lines) -> None:
    caught: list[int] = []

    def deed(db: Session, number: int) -> None:
        try:
            with db.begin_nested():
                db.execute(INSERT, {"id": number // 2, "name": str(number)})
        except IntegrityError:
            caught.append(number)

    run(deed)
    assert caught == [1, 3, 5, 7, 9]
    assert lines() == {number: str(2 * number) for number in range(5)}


def test_an_insert_that_has_a_result_tells_it_at_once(run: Run, lines: Lines) -> None:
    counts: list[int] = []
    returned: list[int] = []

    def deed(db: Session, number: int) -> None:
        merged: object = db.execute(MERGE, {"id": number // 2, "name": str(2 * (number // 2))})
        counts.append(getattr(merged, "rowcount", -1))
        returning = insert(Line).values(id=number + 5, name=str(number + 5)).returning(Line.id)
        if number < 5:
            returned.append(db.execute(returning).scalar_one())

    run(deed, isolate="single")
    assert sorted(counts) == [0] * 5 + [1] * 5
    assert sorted(returned) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("number", [2**15, 2**31, 2**59])
def test_values_of_several_sizes_go_together(run: Run, lines: Lines, number: int) -> None:
    assert run(lambda db, n: db.add(Line(id=n * number, name=None if n else "x"))).of("lines") == [10]
    assert set(lines()) == {n * number for n in range(10)}


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("INSERT INTO a (b) VALUES (%(b)s)", ("b",)),
        ("insert into s.a\n (b, c)\n values ( %(b)s , %(c)s::TIMESTAMP WITH TIME ZONE ) ", ("b", "c")),
        ('INSERT INTO "A b" ("C", d) VALUES (%(C)s::NUMERIC(10, 2), %(d)s::VARCHAR[])', None),
        ('INSERT INTO "A" ("C", d) VALUES (%(C)s::NUMERIC(10, 2), %(d)s::VARCHAR[])', ("C", "d")),
        ("INSERT INTO a (b) VALUES (%(b)s) RETURNING b", None),
        ("INSERT INTO a (b) VALUES (%(b)s) ON CONFLICT DO NOTHING", None),
        ("INSERT INTO a (b) VALUES (nextval('c'))", None),
        ("INSERT INTO a (b, c) VALUES (%(b)s, now())", None),
        ("INSERT INTO a (b) VALUES (%(b)s), (%(c)s)", None),
        ("INSERT INTO a (b) SELECT %(b)s", None),
        ("INSERT INTO a VALUES (%(b)s)", None),
        ("INSERT INTO a (b) VALUES (%(b)s); SELECT 1", None),
        ("UPDATE a SET b = %(b)s", None),
        ("", None),
    ],
)
def test_only_what_is_surely_plain_is_taken_for_it(statement: str, names: tuple[str, ...] | None) -> None:
    found = plain_insert(statement)
    assert (found.names if found else None) == names
    if found:
        merged, values = found.of([dict.fromkeys(found.names, 1), dict.fromkeys(found.names, 2)])
        assert f"${2 * len(found.names)}" in merged
        assert "%" not in merged
        assert values == [1] * len(found.names) + [2] * len(found.names)


def test_a_connection_handlers_inserts_go_together_too(postgresql_url: str) -> None:
    app = App("shop", metadata=Base.metadata)
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Connection) -> None:
        db.execute(INSERT, {"id": int(order.name), "name": order.name})

    with Harness(app, postgresql_url) as harness:
        app.publish_many(orders, [Order(name=str(number)) for number in range(10)])
        harness.until_quiet()
        assert harness.balances()["shop.accept"].applied == 10
        with harness.store.unit("") as unit:
            assert unit.read("SELECT count(*) FROM lines") == [(10,)]
