"""`crash_everywhere` finds the effects that escape their transactions, and only these."""

import datetime
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from flowkit import App, DefinitionError, Message, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.testing import CrashUnsafe, Harness, crash_everywhere, points
from flowkit.testing.process import ScenarioFailed, Unrepeatable
from tests.support.proving import Base, Sale, careless, publish
from tests.support.shop import Order


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    sale: Mapped[int] = mapped_column(ForeignKey("sale.id"))
    name: Mapped[str]


pytestmark = pytest.mark.processes


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


def test_a_file_that_is_appended_to_is_named(directory: Path) -> None:
    with pytest.raises(CrashUnsafe) as unsafe:
        crash_everywhere(careless(directory), publish("a"), directory=directory)
    said = str(unsafe.value)
    assert "app careless is not safe from crashes: killed at" in said
    assert "file log: missing content 'a\\n', surplus content 'a\\na\\n'" in said
    assert "when killed before the statement" in said
    assert "an effect outside of the transaction happens again" in said
    assert 0 < len(unsafe.value.proof.escapes) < unsafe.value.proof.killed


def test_what_the_scenario_lets_run_is_killed_too(directory: Path) -> None:
    """The flows of a scenario that runs them itself, as every test with a Harness does, have the same points."""

    def scenario(harness: Harness) -> None:
        publish("a")(harness)
        harness.until_quiet()

    with pytest.raises(CrashUnsafe, match=r"file log: missing content 'a\\n', surplus content 'a\\na\\n'") as unsafe:
        crash_everywhere(careless(directory), scenario, directory=directory)
    assert unsafe.value.proof.killed > 20
    assert len(unsafe.value.proof.escapes) > 3


def test_a_scenario_of_steps_goes_on_after_a_crash(directory: Path) -> None:
    """What was due before a step's end is done there, though a worker was killed; what the scenario knows, stays."""
    app = App("steps", metadata=Base.metadata)
    first, second = app.channel("first", Order), app.channel("second", Order)

    @app.flow(first, retry=RetryPolicy(attempts=2, first="60s"))
    def once(order: Order, message: Message, db: Session) -> None:
        db.add(Sale(name=order.name, at=datetime.datetime(2026, 1, 1)))
        if not (directory / "failed").exists():
            (directory / "failed").touch()
            raise ValueError("not yet")

    @app.flow(second)
    def twice(order: Order, db: Session) -> None:
        db.add(Sale(name=f"second {order.name}", at=datetime.datetime(2026, 1, 1)))

    def scenario(harness: Harness) -> None:
        names = []
        for step in ("a", "b"):
            harness.publish(second, Order(name=step))
            harness.until_quiet()
            names.append(f"second {step}")
            with harness.session() as session:
                assert session.scalars(select(Sale.name).order_by(Sale.id)).all() == names
        harness.publish(first, Order(name="c"))
        harness.until_quiet()
        harness.advance("2m")
        with harness.session() as session:
            assert session.scalars(select(Sale.name).order_by(Sale.id)).all() == [*names, "c"]

    proof = crash_everywhere(app, scenario, directory=directory, points=20)
    assert 10 <= proof.killed <= 20 < proof.possible


def test_what_a_scenario_cannot_do_is_said(directory: Path) -> None:
    app = careless(directory)

    def ask(harness: Harness) -> None:
        publish("a")(harness)
        harness.sent("orders")

    def step(harness: Harness) -> None:
        publish("a")(harness)
        harness.worker.step()

    def fail_later(harness: Harness) -> None:
        publish("a")(harness)
        harness.until_quiet()
        assert (directory / "log").read_text() == "a\n"

    with pytest.raises(ScenarioFailed, match=r"cannot call sent.*harness.session\(\).*test_crash_everywhere.py"):
        crash_everywhere(app, ask)
    with pytest.raises(Unrepeatable, match=r"itself runs flow careless.write.*let harness.until_quiet"):
        crash_everywhere(app, step, directory=directory)
    with pytest.raises(ScenarioFailed, match=r"after a worker was killed before .*: AssertionError"):
        crash_everywhere(app, fail_later, directory=directory)


async def asynchronous(harness: Harness) -> None:
    pass


@pytest.mark.parametrize(
    ("scenario", "observe", "said"),
    [
        (lambda: None, None, r"scenario <lambda> at test_crash_everywhere.py:\d+ cannot be called with harness: "),
        (asynchronous, None, r"scenario asynchronous .* is async .*; write def asynchronous\(harness\)"),
        (publish("a"), lambda one: None, r"observe <lambda> .* cannot be called with no argument: "),
    ],
)
def test_functions_that_cannot_be_called_are_named(
    scenario: Callable[..., object], observe: Callable[..., object] | None, said: str, directory: Path
) -> None:
    with pytest.raises(DefinitionError, match=said):
        crash_everywhere(careless(directory), scenario, observe=observe)


def test_the_lines_of_an_app_that_is_installed_are_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of other packages has none, and a folder whose name begins like theirs is not theirs."""
    library = tmp_path / "lib"
    for name in ("installed", "installed_too"):
        (library / name).mkdir(parents=True)
    (library / "installed_too" / "__init__.py").write_text("def other():\n    other = 'not mine'\n")
    (library / "installed" / "__init__.py").write_text(
        "from flowkit import App\nfrom installed_too import other\napp = App('installed')\n"
        "@app.flow(app.channel('orders', str))\ndef handle(file):\n    open(file, 'a').write('x')\n    other()\n"
    )
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.setattr(points, "OTHERS", (*points.OTHERS, f"{library}/"))
    app: App = importlib.import_module("installed").app
    directory = tmp_path / "files"
    with pytest.raises(CrashUnsafe) as unsafe:
        crash_everywhere(app, lambda harness: harness.publish("orders", f"{directory}/log"), directory=directory)
    places = [escape.point for escape in unsafe.value.proof.escapes]
    assert [point for point in places if "__init__.py" in point] == ["before __init__.py:7 `other()`"]
    monkeypatch.setattr(points, "OTHERS", (*points.OTHERS[:-1], f"{library}/installed/"))
    assert points.is_own(f"{library}/installed_too/__init__.py")
    assert not points.is_own(f"{library}/installed/__init__.py")
