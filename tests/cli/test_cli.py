"""The command line: help, checks of an app, wrong settings and options, and exit codes."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from flowkit.store.tables import VERSION
from tests.support.command_line import APP, Terminal

# ---------------------------------------------------------------- help and version


def test_help_is_quick_and_names_the_exit_codes(shop: Path) -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "flowkit", "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(after.children_user - before.children_user + after.children_system - before.children_system)
    print(f"flowkit --help takes {min(seconds) * 1000:.0f} ms of CPU")
    assert "Exit codes: 0 done; 1 the answer is no" in " ".join(done.stdout.split())
    for command in ("run", "check", "describe", "send", "status", "audit", "dead", "db"):
        assert re.search(rf"^  {command} +\w", done.stdout, re.MULTILINE), command
    assert re.search(r"^  .*\.\.\.$", done.stdout, re.MULTILINE) is None, "a summary is cut off"


@pytest.mark.parametrize("heavy", ["sqlalchemy", "pydantic", "flowkit.app", "rich", "alembic"])
def test_help_imports_nothing_heavy(shop: Path, heavy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flowkit", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert heavy not in imported


def test_version(flowkit: Terminal) -> None:
    result = flowkit("--version")
    assert result.code == 0
    assert re.fullmatch(r"flowkit \d+\.\d+\.\d+\S*\n", result.out)


def test_the_other_project_of_this_name_is_refused(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        version = "9.9"

    monkeypatch.setattr(metadata, "distribution", lambda name: Other())
    result = flowkit("status")
    assert result.code == 2
    assert "flowkit 9.9" in result.err
    assert "pip uninstall flowkit" in result.err


def test_every_public_name_is_found_on_first_use() -> None:
    import flowkit as package

    for name in package.__all__:
        assert getattr(package, name).__name__
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing


# ---------------------------------------------------------------- check and describe


def test_check(flowkit: Terminal) -> None:
    assert flowkit("check", "shop.py") == (0, "app shop: 3 flows, 3 channels: nothing wrong\n", "")


def test_check_warns_of_state_outside_of_the_database(flowkit: Terminal) -> None:
    text = APP.replace("  # flowkit: stateless", "").replace("def note(body: str) -> None:\n    pass", NOTE)
    (flowkit.folder / "shop.py").write_text(text)
    lines = {text[: text.index(what)].count("\n") + 1: what for what in ('Path("hanging")', "SEEN.add(body)")}
    touched, added = lines
    assert flowkit("check", "shop.py") == (
        0,
        f"shop.py:{touched}: warning: flow shop.accept: Path('hanging').touch() writes to the disk of this host alone; "
        "keep it under a key with `objects: Objects`, or in a table with `db: Session`, or use tempfile for files "
        "that the run deletes\n"
        f"shop.py:{added}: warning: flow shop.note, by remember: SEEN.add(body) writes to the memory of this worker "
        "alone; keep it under a key with `objects: Objects`, or in a table with `db: Session`\n"
        "app shop: 3 flows, 3 channels: 2 warnings\n",
        "",
    )


NOTE = """def note(body: str) -> None:
    remember(body)

SEEN: set[str] = set()

def remember(body: str) -> None:
    SEEN.add(body)
"""


def test_apps_are_found_by_file_module_and_name(flowkit: Terminal) -> None:
    other = "import flowkit\nfrom shop import app as found\nother = flowkit.App('other')\n"
    (flowkit.folder / "several.py").write_text(other)
    (flowkit.folder / "usual.py").write_text(f"{other}app = found\n")
    for name in (
        "shop.py",
        "shop",
        "shop:app",
        "shop.py:app",
        "several:found",
        "usual",
        str(flowkit.folder / "shop.py"),
    ):
        assert flowkit("check", name).code == 0, name
    result = flowkit("check", "several.py")
    assert (result.code, "2 apps" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "there is no file none.py"),
        ("nomodule", None, "there is no module nomodule"),
        ("plain_file.py", "x = 1", "plain_file.py has no App; write app = App(…) there"),
        ("named.py:other", "x = 1", "named.py has no App named other"),
        ("queue.py", "x = 1", "which it would replace; rename the file"),
        ("empty.py", "from flowkit import App\napp = App('empty')", "app empty has no flows"),
        ("twice.py", "from flowkit import App\napp = App('a b')", "App('a b')"),
    ],
)
def test_what_is_no_app_is_told(flowkit: Terminal, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (flowkit.folder / name.split(":", maxsplit=1)[0]).write_text(text)
    for command in ("check", "run"):
        result = flowkit(command, name)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("flowkit: ")
        assert message in result.err
        assert "Traceback" not in result.err


def test_a_definition_that_is_wrong_is_told(flowkit: Terminal) -> None:
    (flowkit.folder / "shop.py").write_text(APP.replace("db: Session) ->", "db: Session, what: bytearray) ->"))
    result = flowkit("check", "shop.py")
    assert result.code == 2
    assert "flow shop.accept: parameter what: bytearray cannot be injected" in result.err


def test_describe(flowkit: Terminal) -> None:
    found = flowkit("describe", "shop.py", "--json").json
    assert [flow["flow"] for flow in found["flows"]] == ["shop.accept", "shop.done", "shop.note"]
    assert found["flows"][0]["to"] == ["orders.accepted"]
    assert found["flows"][0]["dead_letters"] == "flowkit dead list --flow shop.accept"
    assert found["channels"][0] == {"channel": "orders.received", "type": "Order", "subscribers": ["shop.accept"]}
    assert found["orphaned"] == []
    flowkit("send", "shop.py", "notes", "x")
    (flowkit.folder / "shop.py").write_text(APP.split("@app.flow(notes)", maxsplit=1)[0])
    assert flowkit("describe", "shop.py", "--json").json["orphaned"] == ["shop.note"]
    result = flowkit("describe", "shop.py")
    assert "2 attempts, 10ms" in result.out
    assert "orphaned: shop.note is subscribed" in result.out


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("variable", "value", "code", "message"),
    [
        ("DATABASE_URL", "mysql://root:secret@host/db", 2, "write sqlite:///path/to/file.db or postgresql://"),
        ("DATABASE_URL", "sqlite:///missing/flowkit.db", 2, "missing does not exist; create it"),
        ("DATABASE_URL", "sqlite:///folder", 2, "names folder, which cannot be used as a store"),
        ("DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/db", 3, "which cannot be reached"),
        ("THREADS", "many", 2, "FLOWKIT_THREADS: "),
        ("THREADS", "0", 2, "FLOWKIT_THREADS: "),
    ],
)
def test_a_wrong_setting_is_named(
    flowkit: Terminal, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: int, message: str
) -> None:
    (flowkit.folder / "folder").mkdir()
    monkeypatch.setenv(f"FLOWKIT_{variable}", value)
    monkeypatch.setattr("flowkit.host.instance.START_SECONDS", 0.0)
    for command in (
        ["run", "shop.py"],
        ["check", "shop.py"],
        ["status"],
        ["audit"],
        ["dead", "list"],
        ["db", "upgrade"],
    ):
        result = flowkit(*command)
        assert (result.code, result.out) == (code, ""), command
        assert f"FLOWKIT_{variable}" in result.err
        assert message in result.err
        assert "secret" not in result.err
        assert "Traceback" not in result.err


@pytest.mark.skipif(sys.platform != "linux", reason="uses a folder in which not even root may write")
def test_a_folder_that_cannot_be_written_is_named(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", "sqlite:////proc/self/flowkit.db")
    result = flowkit("db", "upgrade")
    assert result.code == 2
    assert "/proc/self/flowkit.db, which cannot be used as a store" in result.err


@pytest.mark.parametrize("command", [["status"], ["audit"], ["dead", "list"]])
def test_looking_creates_no_database(flowkit: Terminal, command: list[str]) -> None:
    result = flowkit(*command)
    assert result.code == 2
    assert "there is no such file here" in result.err
    assert not (flowkit.folder / "flowkit.db").exists()


def test_a_database_that_cannot_be_written_is_named(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", "sqlite:////dev/null/flowkit.db")
    assert flowkit("status").code == 2
    (flowkit.folder / "text.db").write_text("this is text, and no database at all: " * 200)
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", "sqlite:///text.db")
    result = flowkit("status")
    assert (result.code, "which cannot be used as a store" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flows", "accept,nothing"], "app shop has no flow nothing; its flows are shop.accept"),
        (["--grace", "soon"], "--grace is 'soon'"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_a_wrong_option_of_run_is_told(flowkit: Terminal, arguments: list[str], message: str) -> None:
    result = flowkit("run", "shop.py", *arguments)
    assert result.code == 2
    assert message in result.err


def test_a_wrong_log_level_is_told(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_LOG_LEVEL", "loud")
    result = flowkit("run", "shop.py")
    assert (result.code, "FLOWKIT_LOG_LEVEL is 'loud'" in result.err) == (2, True)


# ---------------------------------------------------------------- the schema


def test_db(flowkit: Terminal) -> None:
    assert flowkit("db", "upgrade") == (0, f"schema {VERSION}\n", "")
    assert flowkit("db", "check") == (0, "the schema is of this version\n", "")


def test_db_on_postgresql(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch, postgresql_url: str) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", postgresql_url)
    result = flowkit("db", "check")
    assert (result.code, "has no FlowKit schema" in result.out) == (1, True)
    result = flowkit("status")
    assert (result.code, "run: flowkit db upgrade" in result.err) == (2, True)
    assert flowkit("db", "upgrade").code == 0
    assert flowkit("db", "check").code == 0
    told = flowkit("status", "--json").json
    assert told.pop("latency")["store"] > 0
    assert told == {"workers": [], "active": {}, "orphaned": [], "flows": {}, "shared": {}}


TABLE = """
from sqlalchemy import Column, Integer, MetaData, Table
from flowkit import App
metadata = MetaData()
Table("orders", metadata, Column("id", Integer, primary_key=True))
app = App("shop", metadata=metadata)

@app.flow("orders")
def accept(body: str) -> None: ...
"""


@pytest.mark.parametrize("command", [("check", "tables.py"), ("run", "tables.py", "--until-idle")])
def test_tables_that_nobody_creates_are_missed_at_the_start(
    flowkit: Terminal, monkeypatch: pytest.MonkeyPatch, postgresql_url: str, command: tuple[str, ...]
) -> None:
    (flowkit.folder / "tables.py").write_text(TABLE)
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", postgresql_url)
    assert flowkit("db", "upgrade").code == 0
    result = flowkit(*command)
    assert (result.code, "tables that are not in the database" in result.err) == (2, True)
    engine = create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("CREATE TABLE orders (id integer)")
    engine.dispose()
    assert flowkit("check", "tables.py").code == 0
