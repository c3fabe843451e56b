"""`crash_everywhere` finds the effects that escape their transactions, and only these."""

import datetime
import importlib
import itertools
import json
import os
import pty
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, ConfigError, DefinitionError, Message, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.cli.commands import main
from flowkit.cli.prove import _rows
from flowkit.testing import CrashUnsafe, Harness, crash_everywhere, points
from flowkit.testing.end import Common, Row, differences, files, observed
from flowkit.testing.process import ScenarioFailed, Unrepeatable
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


FEW = 10
"""Points for tests of how ends are compared: others kill workers at every point."""


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


def logger(directory: Path, line: Callable[[str], str]) -> App:
    app = App("logging")

    @app.flow(app.channel("orders", Order))
    def write(order: Order) -> None:
        with (directory / "log").open("a") as log:
            log.write(line(order.name))

    return app


def test_a_time_does_not_hide_the_rest_of_a_file(directory: Path) -> None:
    with pytest.raises(CrashUnsafe) as unsafe:
        app = logger(directory, lambda name: f"{time.time()} {name}\n")
        crash_everywhere(app, publish("a"), directory=directory, points=FEW)
    said = str(unsafe.value)
    assert "file log: missing content '# a\\n', surplus content '# a\\n# a\\n'" in said
    assert "compared without these, because they differ without a crash: numbers in content of file log" in said


def test_a_time_does_not_hide_the_rest_of_what_is_observed(directory: Path) -> None:
    directory.mkdir()
    log = directory / "log"

    def scenario(harness: Harness) -> None:
        log.write_text("")
        publish("a")(harness)

    with pytest.raises(CrashUnsafe, match=r"observe\(\): missing \[1\] 'a\\n', surplus \[1\] 'a\\na\\n'") as unsafe:
        crash_everywhere(
            careless(directory),
            scenario,
            observe=lambda: [time.time(), log.read_text() if log.exists() else ""],
            points=FEW,
        )
    assert unsafe.value.proof.masked == ["numbers in [0] of observe()"]


def test_folders_of_random_names_are_counted(directory: Path) -> None:
    app = App("folders")
    app.flow(app.channel("orders", Order), name="make")(lambda order: tempfile.mkdtemp(dir=directory) and None)
    with pytest.raises(CrashUnsafe, match=r"files: surplus path '#'"):
        crash_everywhere(app, publish("a"), directory=directory, points=FEW)


def test_what_cannot_be_compared_at_all_is_refused(directory: Path) -> None:
    app = logger(directory, lambda name: f"{random.SystemRandom().random()}")
    with pytest.raises(Unrepeatable, match=r"all of content of file log differs .* leave it out of directory="):
        crash_everywhere(app, publish("a"), directory=directory)
    with pytest.raises(Unrepeatable, match=r"all of value of observe\(\) differs"):
        crash_everywhere(app, publish("a"), observe=time.time)


@pytest.mark.parametrize(
    ("one", "other", "masked", "incomparable"),
    [
        ([1, {"a": "x"}], [1, {"a": "x"}], [], []),
        ([1.5, "x"], [1e-05, "x"], ["numbers in [0] of observe()"], []),
        ({"id": "3f2b-beef"}, {"id": "ab12-cafe"}, ["numbers in ['id'] of observe()"], []),
        ([{"by": "tqxz"}], [{"by": "wvrk"}], ["words in [0]['by'] of observe()"], []),
        ([True, b"1"], [False, b"2"], ["numbers in [1] of observe()", "words in [0] of observe()"], []),
        ([None], ["x"], ["words in [0] of observe()"], ["[0] of observe()"]),
        ("x", "y", ["words in value of observe()"], ["value of observe()"]),
        ("x\n", "y\n", ["words in value of observe()"], []),
        (["a b"], ["c"], ["words in [0] of observe()"], ["[0] of observe()"]),
    ],
)
def test_only_what_varies_of_an_observation_is_masked(
    one: object, other: object, masked: list[str], incomparable: list[str]
) -> None:
    ends = [{"observe()": list(observed(value))} for value in (one, other)]
    common = Common(*ends)
    assert (common.ignored, common.masked, common.incomparable) == ([], masked, incomparable)
    assert incomparable or not differences(common.of(ends[0]), common.of(ends[1]))


def test_more_elements_than_before_are_a_difference() -> None:
    ends = [{"observe()": list(observed([{"at": now}]))} for now in (1.5, 2.5)]
    common = Common(*ends)
    more = {"observe()": list(observed([{"at": 3.5}, {"at": 4.5}]))}
    (difference,) = differences(common.of(ends[0]), common.of(more))
    assert (difference.missing, difference.surplus) == ([], [{"[1]['at']": 4.5}])
    empties: list[object] = [[], {}, ()]
    assert [list(observed(empty)) for empty in empties] == [
        [{"value": "[]"}],
        [{"value": "{}"}],
        [{"value": "()"}],
    ]
    assert list(observed({"b", "a"})) == [{"[0]": "a"}, {"[1]": "b"}]


def test_the_time_in_one_file_does_not_mask_another(tmp_path: Path) -> None:
    def look(number: int, count: str = "1", *more: str) -> dict[str, list[Row]]:
        folder = tmp_path / str(next(runs))
        (folder / "sub").mkdir(parents=True)
        (folder / "log").write_text(f"2026-11-26T08:04:{number}+00:00 a\n")
        (folder / "count").write_text(count)
        (folder / "sub" / f"{number}.txt").write_text("x" * 300)
        for name in more:
            (folder / name).mkdir()
        return {"files": files(folder)}

    runs = itertools.count()
    first = look(10)
    common = Common(first, look(11))
    assert common.masked == ["numbers in content of file log", "numbers in path of files"]
    assert not differences(common.of(first), common.of(look(12)))
    (difference,) = differences(common.of(first), common.of(look(13, "2")))
    assert str(difference) == "file count: missing content '1', surplus content '2'"
    (difference,) = differences(common.of(first), common.of(look(14, "1", "empty")))
    assert str(difference) == "files: surplus path 'empty/'"


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
    assert str(escape.differences[0]) == "file a-2: missing content ''"


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

    with pytest.raises(CrashUnsafe, match=r"observe\(\): surplus \[1\]\[0\] 'a'"):
        crash_everywhere(app, scenario, observe=observe, points=FEW)


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
        crash_everywhere(app, publish("a"), points=2 * FEW)


def test_what_varies_without_a_crash_is_not_compared_and_the_rest_is(directory: Path) -> None:
    app = App("varying")
    drawn = app.channel("drawn", dict)

    @app.flow(app.channel("orders", Order), to=drawn)
    def draw(order: Order) -> dict[str, object]:
        return {"name": order.name, "number": random.SystemRandom().random()}

    app.flow(drawn, name="take")(lambda found: None)
    proof = crash_everywhere(app, publish("a"), points=FEW)
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

    quiet = App("quiet")
    quiet.flow(quiet.channel("orders", Order), name="take")(lambda order: None)
    with pytest.raises(Unrepeatable, match="ended differently"):
        crash_everywhere(quiet, more)
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
    few = ("--points", str(FEW))
    code, said = command("pass", "scenario", *few)
    assert (code, "0 of these crashes change the end" in said) == (0, True)
    code, said = command(effect, "scenario", "--directory", "files", *few)
    assert code == 1
    assert "file log: missing content 'a', surplus content 'aa'" in said
    code, said = command(effect, "scenario", "--directory", "files", "--json", *few)
    assert (code, json.loads(said)["escapes"][0]["differences"][0]["where"]) == (1, "file log")
    code, said = command("pass", "nothing")
    assert (code, said) == (2, "flowkit: proven.py has no function nothing; write def nothing(…) there\n")


def test_flowkit_prove_tells_an_escape_from_what_it_cannot_prove(
    command: Callable[..., tuple[int | str | None, str]],
) -> None:
    code, said = command("pass\n\ndef wrong():\n    pass\n\ndef fail(harness):\n    1 / 0", "wrong")
    assert code == 2
    assert said.startswith("flowkit: scenario wrong at proven.py:12 cannot be called with harness: ")
    assert said.endswith("; write def wrong(harness)\n")
    code, said = command("pass\n\ndef fail(harness):\n    1 / 0", "fail")
    assert (code, said) == (2, "flowkit: ZeroDivisionError: division by zero (at proven.py:13)\n")
    code, said = command("pass\n\ndef nothing(harness):\n    pass", "nothing")
    assert (code, said.partition(";")[0]) == (2, "flowkit: the scenario publishes nothing that a flow takes")


def test_what_json_has_no_word_for_is_text() -> None:
    at = datetime.datetime(2026, 1, 1)
    (row,) = _rows([{"at": at, "number": 1, "text": "a", "none": None, "long": "x" * 300}])
    assert json.loads(json.dumps(row)) == row
    assert (row["at"], row["number"], row["text"], row["none"]) == (repr(at), 1, "a", None)
    assert "302 characters, sha256" in row["long"]


def test_flowkit_prove_shows_how_far_it_is_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "proven.py").write_text(APP.format(effect="pass"))
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowkit", "prove", "proven.py", "scenario", "--points", "3"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal's other side is closed
            while more := terminal.read(1000):
                shown += more
        said, _ = process.communicate()
    assert process.returncode == 0
    assert b"killing workers" in shown
    assert b"100%" in shown
    assert said.startswith(b"app shop: killed at 3 of ")
