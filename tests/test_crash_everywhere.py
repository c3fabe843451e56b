"""`crash_everywhere` finds the effects that escape their transactions, and only these."""

import datetime
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, ConfigError, Message, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.cli.commands import main
from flowkit.testing import CrashUnsafe, Harness, crash_everywhere
from flowkit.testing.crash import ScenarioFailed, Unrepeatable
from tests.shop import Order


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    at: Mapped[datetime.datetime]


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    sale: Mapped[int] = mapped_column(ForeignKey("sale.id"))
    name: Mapped[str]


pytestmark = pytest.mark.processes


def publish(*names: str, deed: str = "") -> Callable[[Harness], None]:
    def scenario(harness: Harness) -> None:
        for name in names:
            harness.publish("orders", Order(name=name, deed=deed))

    return scenario


def test_flows_that_use_what_flowkit_gives_them_are_safe() -> None:
    app = App("shop", metadata=Base.metadata)
    orders, sold, counted = (app.channel(name, Order) for name in ("orders", "sold", "counted"))

    @app.flow(orders, to=sold, retry=RetryPolicy(attempts=3, first="10s"))
    def sell(order: Order, message: Message, db: Session) -> Order:
        now = datetime.datetime.now(datetime.UTC)
        sale = Sale(name=order.name, at=now)
        db.add(sale)
        db.flush()
        db.add_all([Line(sale=sale.id, name=order.name), Line(sale=sale.id, name="postage")])
        if order.name == "bad":
            raise ValueError("no such order")
        return order

    @app.flow(sold)
    def count(order: Order, objects: Objects, outbox: Outbox) -> None:
        objects.put(order.name, {"counted": True})
        outbox.send(counted, order)

    @app.flow(counted)
    async def note(order: Order, work: UnitOfWork) -> None:
        def add(db: Session, outbox: Outbox) -> None:
            db.add(Sale(name=f"noted {order.name}", at=datetime.datetime.now(datetime.UTC)))

        await work.run(add)

    proof = crash_everywhere(app, publish("a", "bad", "b"), points=60)
    assert 30 <= proof.killed <= 60 < proof.possible
    assert proof.ignored == ["at of table sale"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "files"


def careless(directory: Path) -> App:
    app = App("careless")

    @app.flow(app.channel("orders", Order))
    def write(order: Order) -> None:
        with (directory / "log").open("a") as log:
            log.write(f"{order.name}\n")

    return app


def test_a_file_that_is_appended_to_is_named(directory: Path) -> None:
    with pytest.raises(CrashUnsafe) as unsafe:
        crash_everywhere(careless(directory), publish("a"), directory=directory)
    said = str(unsafe.value)
    assert "app careless is not safe from crashes: killed at" in said
    assert "files: missing path 'log', content 'a\\n', surplus path 'log', content 'a\\na\\n'" in said
    assert "when killed before the statement" in said
    assert "an effect outside of the transaction is there again" in said
    assert 0 < len(unsafe.value.proof.escapes) < unsafe.value.proof.killed


def test_a_file_that_is_replaced_is_safe(directory: Path) -> None:
    app = App("careful")

    @app.flow(app.channel("orders", Order))
    def write(order: Order, message: Message) -> None:
        (directory / order.name).write_text(order.name)

    assert not crash_everywhere(app, publish("a", "b"), directory=directory).escapes


def test_a_half_written_effect_is_named(directory: Path) -> None:
    """An effect of two lines that looks at the first to see whether it is there: killed between them, half is left."""
    app = App("half")

    @app.flow(app.channel("orders", Order))
    def write(order: Order) -> None:
        first = directory / f"{order.name}-1"
        if not first.exists():
            first.touch()
            (directory / f"{order.name}-2").touch()

    with pytest.raises(CrashUnsafe) as unsafe:
        crash_everywhere(app, publish("a"), directory=directory)
    (escape,) = unsafe.value.proof.escapes
    assert escape.point.startswith("before test_crash_everywhere.py:")
    assert escape.point.endswith('-2").touch()`')
    assert str(escape.differences[0]) == "files: missing path 'a-2', content ''"


def test_another_effect_is_observed(tmp_path: Path) -> None:
    app = App("observed")
    other = tmp_path / "other.db"

    @app.flow(app.channel("orders", Order))
    def write(order: Order) -> None:
        with closing(sqlite3.connect(other)) as connection, connection:
            connection.execute("INSERT INTO mail VALUES (?)", (order.name,))

    def scenario(harness: Harness) -> None:
        with closing(sqlite3.connect(other)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS mail")
            connection.execute("CREATE TABLE mail (name)")
        publish("a")(harness)

    def observe() -> object:
        with closing(sqlite3.connect(other)) as connection:
            return connection.execute("SELECT name FROM mail").fetchall()

    with pytest.raises(CrashUnsafe, match=r"observe\(\): missing value .*, surplus value"):
        crash_everywhere(app, scenario, observe=observe)


def test_state_in_the_workers_memory_is_found() -> None:
    """What an earlier message left in memory is gone after a crash."""
    app = App("remembering", metadata=Base.metadata)
    seen: list[str] = []
    remembered = app.channel("remembered", Order)

    @app.flow(app.channel("orders", Order), to=remembered)
    def remember(order: Order) -> Order:
        seen.append(order.name)
        return order

    @app.flow(remembered)
    def number(order: Order, db: Session) -> None:
        db.add(Sale(name=f"{order.name} of {len(seen)}", at=datetime.datetime(2026, 1, 1)))

    with pytest.raises(CrashUnsafe, match=r"table sale: missing .*name 'a of 1'.*surplus .*name 'a of 0'"):
        crash_everywhere(app, publish("a"))


def test_what_varies_without_a_crash_is_not_compared_and_the_rest_is(directory: Path) -> None:
    app = App("varying")
    drawn = app.channel("drawn", dict)

    @app.flow(app.channel("orders", Order), to=drawn)
    def draw(order: Order) -> dict[str, object]:
        return {"name": order.name, "number": random.SystemRandom().random()}

    app.flow(drawn, name="take")(lambda found: None)
    proof = crash_everywhere(app, publish("a"))
    assert proof.ignored == ["body.number of sent"]
    assert not proof.escapes


def test_only_so_many_points_are_taken(directory: Path) -> None:
    app = App("few")
    app.flow(app.channel("orders", Order), name="nothing")(lambda order: None)
    proof = crash_everywhere(app, publish("a"), points=5)
    assert 3 <= proof.killed <= 5 < proof.possible


def test_what_cannot_be_proven_is_said(directory: Path) -> None:
    app = careless(directory)
    with pytest.raises(Unrepeatable, match="publishes nothing that a flow takes"):
        crash_everywhere(app, lambda harness: None)
    with pytest.raises(ScenarioFailed, match=r"ZeroDivisionError: .* by zero .at test_crash_everywhere.py"):
        crash_everywhere(app, lambda harness: 1 // 0)
    runs = directory.parent / "runs"

    def more(harness: Harness) -> None:
        with runs.open("a") as file:
            file.write("x")
        publish(*"abcdef"[: len(runs.read_text())])(harness)

    with pytest.raises(Unrepeatable, match="ended differently"):
        crash_everywhere(app, more)
    directory.mkdir(exist_ok=True)
    (directory / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        crash_everywhere(app, publish("a"), directory=directory)
    assert (directory / "mine").exists()


APP = """
from pathlib import Path
from flowkit import App

app = App("shop")
orders = app.channel("orders", str)

@app.flow(orders)
def write(order: str) -> None:
    {effect}

def scenario(harness):
    harness.publish(orders, "a")
"""


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int | str | None, str]]]:
    monkeypatch.chdir(tmp_path)

    def run(effect: str, *arguments: str) -> tuple[int | str | None, str]:
        (tmp_path / "proven.py").write_text(APP.format(effect=effect))
        monkeypatch.setattr("sys.argv", ["flowkit", "prove", "proven.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    yield run


def test_flowkit_prove_says_what_escaped(command: Callable[..., tuple[int | str | None, str]]) -> None:
    effect = 'open("files/log", "a").write(order)'
    code, said = command("pass", "scenario")
    assert (code, "0 of these crashes change the end" in said) == (0, True)
    code, said = command(effect, "scenario", "--directory", "files")
    assert code == 1
    assert "files: missing path 'log', content 'a', surplus path 'log', content 'aa'" in said
    code, said = command(effect, "scenario", "--directory", "files", "--json")
    assert (code, json.loads(said)["escapes"][0]["differences"][0]["where"]) == (1, "files")
    code, said = command("pass", "nothing")
    assert (code, said) == (2, "flowkit: proven.py has no function nothing; write def nothing(…) there\n")
