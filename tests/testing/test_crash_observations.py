"""`crash_everywhere` compares what a run left behind: what varies by itself is masked, and the rest is not."""

import datetime
import itertools
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from flowkit import App, ConfigError, Message
from flowkit.testing import CrashUnsafe, Harness, crash_everywhere
from flowkit.testing.end import Common, Row, differences, files, observed
from flowkit.testing.process import ScenarioFailed, Unrepeatable
from tests.support.proving import FEW, Base, Sale, careless, publish
from tests.support.shop import Order

pytestmark = pytest.mark.processes


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
    assert escape.point.startswith("before test_crash_observations.py:")
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
    with pytest.raises(ScenarioFailed, match=r"ZeroDivisionError: .* by zero .at test_crash_observations.py"):
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
