"""The command line: every command, what it says of mistakes, and its exit codes."""

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import create_engine

from flowkit.cli import main
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store.tables import VERSION

ROOT = Path(__file__).parent.parent
APP = """
import time
from pathlib import Path
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from flowkit import App, Reject, RetryPolicy

class Base(DeclarativeBase):
    pass

class Row(Base):
    __tablename__ = "effects"
    row: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int]

class Order(BaseModel):
    id: int
    deed: str = ""

app = App("shop", metadata=Base.metadata)
received = app.channel("orders.received", Order)
accepted = app.channel("orders.accepted", Order)
notes = app.channel("notes", str)

@app.flow(received, to=accepted, retry=RetryPolicy(attempts=2, first="10ms"))
def accept(order: Order, db: Session) -> Order:
    if order.deed == "sleep":
        time.sleep(0.01)
    if order.deed == "hang":
        db.flush()
        Path("hanging").touch()  # flowkit: stateless
        time.sleep(600)
    if order.deed == "commit":
        db.connection().connection.driver_connection.execute("COMMIT")
    db.add(Row(id=order.id))
    return order

@app.flow(accepted)
def done(order: Order) -> None:
    if order.deed == "reject":
        raise Reject(f"no {order.id % 2} \\x1b[31m\\nred")

@app.flow(notes)
def note(body: str) -> None:
    pass
"""


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal:
    """Runs commands in this process, in a folder with the app and its database."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        self._monkeypatch.setattr(sys, "argv", ["flowkit", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, *self._capsys.readouterr())

    def drain(self) -> None:
        """Work until nothing is left, retries included."""
        from flowkit.cli.load import load
        from flowkit.engine.worker import Worker
        from flowkit.services import connect
        from flowkit.settings import Settings

        services = connect(Settings.read())
        app = load("shop.py")
        worker = Worker(app, services)
        end = time.monotonic() + 30
        while worker.step() or any(services.store.ledger.pending(list(app.flows))):
            assert time.monotonic() < end
        worker.close()
        services.close()

    def dead(self, count: int) -> list[str]:
        """Make dead letters. Returns their ids."""
        lines = [json.dumps({"id": number, "deed": "reject"}) for number in range(count)]
        (self.folder / "rejected.jsonl").write_text("\n".join(lines))
        assert self("send", "shop.py", "orders.received", "@rejected.jsonl").out == f"{count}\n"
        self.drain()
        return [one["letter"] for one in self("dead", "list", "--json", "--limit", str(count)).json]

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "flowkit.db")) as connection, connection:
            return connection.execute(statement).fetchall()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the app, which is the working directory."""
    for name in [name for name in os.environ if name.startswith("FLOWKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def flowkit(shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    modules = set(sys.modules)
    yield Terminal(shop, monkeypatch, capsys)
    for name in set(sys.modules) - modules:
        if str(shop) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


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


# ---------------------------------------------------------------- send


def test_send_one(flowkit: Terminal) -> None:
    result = flowkit("send", "shop.py", "orders.received", '{"id": 1}', "--id", "one", "--key", "k", "--delay", "1h")
    assert result == (0, "one\n", "")
    again = flowkit("send", "shop.py", "orders.received", '{"id": 1}', "--id", "one")
    assert again.code == 0
    assert flowkit.sql("SELECT id, key FROM flowkit_messages") == [("one", "k")]
    assert flowkit("status", "--json").json["flows"]["shop.accept"]["backlog"]["delayed"] == 1


@pytest.mark.parametrize(
    ("stdin", "out"),
    [
        (b'{"id": 1}\n{"id": 2}\n\n{"id": 3}', "3\n"),
        (b'{\n  "id": 1,\n  "deed": "x"\n}\n', None),
        (b'{"id": 1}\n', None),
        (b"", "0\n"),
    ],
)
def test_send_from_standard_input(flowkit: Terminal, stdin: bytes, out: str | None) -> None:
    result = flowkit("send", "shop.py", "orders.received", "-", stdin=stdin)
    assert result.code == 0
    if out is None:
        out = f"{flowkit.sql('SELECT id FROM flowkit_messages')[0][0]}\n"
    assert result.out == out


def test_send_text_as_it_is(flowkit: Terminal) -> None:
    assert flowkit("send", "shop.py", "notes", stdin=b"one {\r\ntwo\n").out == "2\n"
    assert flowkit.sql("SELECT CAST(body AS text) FROM flowkit_messages ORDER BY 1") == [("one {",), ("two",)]


def test_send_a_file_with_a_wrong_line(flowkit: Terminal) -> None:
    lines = [json.dumps({"id": number}) for number in range(1200)]
    lines[1100] = '{"id": "many"}'
    (flowkit.folder / "orders.jsonl").write_text("\n".join(lines))
    result = flowkit("send", "shop.py", "orders.received", "@orders.jsonl")
    assert (result.code, result.out) == (1, "")
    assert "lines 1 to 1000 were sent" in result.err
    assert "line 1101: not a message for channel orders.received: id: " in result.err
    assert flowkit.sql("SELECT count(*) FROM flowkit_messages") == [(1000,)]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["orders.received", "{"], b"", 1, "not a message for channel orders.received: the body: Invalid JSON"),
        (["orders.received", '{"id": "x"}'], b"", 1, "id: Input should be a valid integer"),
        (["orders.received", "-"], b'{"id": 1}\n{"i', 1, "line 2: not a message"),
        (
            ["orders.received", "-", "--id", "x"],
            b'{"id": 1}\n{"id": 2}\n',
            1,
            "--key, --id and --delay are for one message",
        ),
        (["orders.received", "@none.jsonl"], b"", 1, "there is no file none.jsonl"),
        (["orders", "{}"], b"", 2, "no channel orders; its channels are notes, orders.accepted, orders.received"),
        (["notes", "x", "--delay", "later"], b"", 2, "delay is 'later'"),
        (["notes", "x", "--delay", "30d"], b"", 2, "exceeds App(max_delay='3d')"),
    ],
)
def test_send_tells_what_is_wrong(
    flowkit: Terminal, arguments: list[str], stdin: bytes, code: int, message: str
) -> None:
    result = flowkit("send", "shop.py", *arguments, stdin=stdin)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "Traceback" not in result.err


# ---------------------------------------------------------------- status and audit


def test_status(flowkit: Terminal) -> None:
    flowkit("send", "shop.py", "notes", "x")
    flowkit("send", "shop.py", "notes", "x", "--delay", "1h")
    found = flowkit("status", "--json").json
    assert found["workers"] == []
    note = found["flows"]["shop.note"]
    assert (note["channel"], note["accepted"], note["pending"], note["dead"]) == ("notes", 2, 2, 0)
    assert (note["backlog"]["due"], note["backlog"]["delayed"]) == (1, 1)
    assert note["backlog"]["oldest"] >= 0
    result = flowkit("status")
    assert result.code == 0
    assert re.search(r"^shop\.note +notes +0 +0 +0 +1 +0 +1 ", result.out, re.MULTILINE)


def test_audit(flowkit: Terminal) -> None:
    letters = flowkit.dead(4)
    flowkit("dead", "discard", letters[0])
    result = flowkit("audit", "--json")
    assert result.code == 0
    assert result.json["flows"]["shop.done"] == {
        "balanced": True, "accepted": 4, "applied": 0, "dead": 3, "discarded": 1, "expired": 0, "pending": 0,
    }  # fmt: skip
    names = ("accepted", "applied", "dead", "discarded", "expired", "pending")
    assert {name: result.json[name] for name in names} == dict(zip(names, (8, 4, 3, 1, 0, 0), strict=True))
    assert result.json["balanced"] is True
    assert flowkit("audit").out.endswith("\nbalanced\n")


def test_audit_finds_what_is_lost_and_what_is_counted_twice(flowkit: Terminal) -> None:
    flowkit.dead(4)
    flowkit.sql("UPDATE flowkit_counters SET accepted = accepted + 1 WHERE flow = 'shop.done' AND accepted > 0")
    result = flowkit("audit", "--json")
    assert (result.code, result.json["balanced"], result.json["flows"]["shop.done"]["balanced"]) == (1, False, False)
    assert result.json["flows"]["shop.accept"]["balanced"] is True
    result = flowkit("audit")
    assert result.code == 1
    assert "shop.done: 5 were accepted, and 4 are accounted for" in result.out
    assert "NOT balanced" in result.out
    # One flow too many and another too few: the sums agree, the flows do not.
    flowkit.sql("UPDATE flowkit_counters SET accepted = accepted - 1 WHERE flow = 'shop.accept' AND accepted > 0")
    assert flowkit("audit").code == 1


def test_audit_finds_a_dead_letter_that_is_gone(flowkit: Terminal) -> None:
    letters = flowkit.dead(2)
    flowkit.sql(f"DELETE FROM flowkit_dead WHERE letter = '{letters[0]}'")
    result = flowkit("audit")
    assert (result.code, "2 are counted dead, and there are 1 dead letters" in result.out) == (1, True)


def test_nothing_but_json_and_no_colours_when_piped(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    (letter, *_) = flowkit.dead(2)
    commands = [["status"], ["audit"], ["describe", "shop.py"], ["dead", "list"], ["dead", "list", "--group"]]
    for command in [*commands, ["dead", "show", letter, "--body"]]:
        result = flowkit(*command)
        assert (result.code, result.err) == (0, ""), command
        assert "\x1b" not in result.out, command
        result = flowkit(*command, "--json")
        assert (result.code, result.err) == (0, ""), command
        assert isinstance(result.json, dict | list)
        assert "\x1b" not in result.out, command


def test_a_terminal_gets_styles_and_with_no_color_no_colours(
    flowkit: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowkit.cli.show import table

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    table("Title", ["a"], [(1,)])
    assert "\x1b[1m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    table("Title", ["a"], [(1,)])
    assert re.search(r"\x1b\[[0-9;]*[349]\d", capsys.readouterr().out) is None


# ---------------------------------------------------------------- dead letters


def test_dead_list_and_show(flowkit: Terminal) -> None:
    letters = flowkit.dead(5)
    assert len(letters) == 5
    result = flowkit("dead", "list", "--limit", "2")
    lines = [line for line in result.out.splitlines() if "shop.done" in line]
    assert len(lines) == 2, "a letter is a line"
    assert letters[0] in lines[0]
    assert "\\x1b[31m\\nred" in lines[0]
    assert len(flowkit("dead", "list", "--json", "--error", "no 0").json) == 3
    assert flowkit("dead", "list", "--json", "--flow", "shop.accept").json == []
    groups = flowkit("dead", "list", "--group", "--json").json
    assert [(one["flow"], one["count"]) for one in groups] == [("shop.done", 3), ("shop.done", 2)]
    hidden = flowkit("dead", "show", letters[0])
    assert "(hidden; see --body)" in hidden.out
    assert '"reject"' not in hidden.out
    assert "\x1b" not in hidden.out
    shown = flowkit("dead", "show", letters[0], "--body", "--json").json
    assert json.loads(shown["body"]) == {"id": 0, "deed": "reject"}
    assert shown["flow"] == "shop.done"


def test_many_dead_letters_are_listed_by_pages_without_their_bodies(
    flowkit: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.operations.dead_letters.BATCH", 2)
    letters = flowkit.dead(5)
    told = "the oldest 4 are shown, and there are more: --limit shows them, --group counts\n"
    result = flowkit("dead", "list", "--limit", "4")
    lines = result.out.splitlines()
    assert lines[0].strip() == "Dead letters"
    assert lines[1].split() == ["letter", "flow", "message", "attempts", "died", "reason", "error"]
    assert [line.split()[0] for line in lines[2:]] == letters[:4]
    assert result.err == told
    listed = flowkit("dead", "list", "--limit", "4", "--json")
    assert [one["letter"] for one in listed.json] == letters[:4]
    assert listed.err == told
    assert flowkit("dead", "list", "--limit", "5").err == ""
    with closing(open_store(Settings.read())) as store:
        for one in store.dead_letters.read(letters, whole=False):
            assert (one.message.body, one.stack) == (b"", "")
            (whole,) = store.dead_letters.read([one.letter])
            assert whole._replace(message=whole.message._replace(body=b""), stack="") == one


def test_a_body_that_is_no_text_is_shown(flowkit: Terminal) -> None:
    (letter,) = flowkit.dead(1)
    flowkit.sql("UPDATE flowkit_dead SET body = x'ff1b5b41'")
    result = flowkit("dead", "show", letter, "--body")
    assert "body: \\xff\\x1b[A" in result.out
    assert flowkit("dead", "show", letter, "--body", "--json").json["body"] == "\\xff\x1b[A"


def test_dead_letters_are_sent_again_or_discarded(flowkit: Terminal) -> None:
    letters = flowkit.dead(6)
    assert flowkit("dead", "retry", letters[0], letters[0], letters[1]).out == "2 of 2 dead letters: sent again\n"
    assert flowkit("dead", "discard", "--error", "no 0").out == "2 of 2 dead letters: discarded\n"
    assert flowkit("dead", "discard", "--flow", "shop.done", "--yes").code == 0
    flowkit.drain()
    left = flowkit("dead", "list", "--json").json
    assert {one["message"] for one in left}.isdisjoint(letters)
    assert len(left) == 2, "what was sent again was rejected again"
    assert flowkit("dead", "retry", "--all").out == "2 of 2 dead letters: sent again\n"
    assert flowkit("audit").code == 0


def test_a_terminal_is_asked(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    flowkit.dead(2)
    asked: list[str] = []

    def answer(text: str) -> Callable[[str], str]:
        def ask(prompt: str) -> str:
            asked.append(prompt)
            return text

        return ask

    class Tty(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "TextIOWrapper", Tty)
    monkeypatch.setattr("builtins.input", answer("n"))
    result = flowkit("dead", "discard", "--all")
    assert (result.code, "nothing was done" in result.err) == (1, True)
    assert asked == ["discard 2 dead letters? [y/N] "]
    assert flowkit("dead", "discard", "--all", "--yes").code == 0
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nobody"], 1, "there is no dead letter nobody; see flowkit dead list"),
        (["retry", "nobody"], 1, "1 of the letters named are not there"),
        (["discard", "--all"], 1, "there are no such dead letters"),
        (["retry", "--flow", "x"], 1, "there are no such dead letters"),
        (["retry"], 2, "name what to retry"),
        (["discard", "x", "--all"], 2, "name what to discard"),
        (["discard", "x", "--flow", "y"], 2, "name what to discard"),
    ],
)
def test_dead_letters_that_are_not_there(flowkit: Terminal, arguments: list[str], code: int, message: str) -> None:
    flowkit("db", "upgrade")
    result = flowkit("dead", *arguments)
    assert result.code == code
    assert message in result.err


def test_what_a_channel_refuses_is_told_by_send(flowkit: Terminal) -> None:
    """It can be read, and would not come out as it went in."""
    source = (flowkit.folder / "shop.py").read_text()
    (flowkit.folder / "shop.py").write_text(
        source.replace("    deed: str = ", "    total: float = 0\n    deed: str = ")
    )
    why = (
        "not a message for channel orders.received: this Order would not come out as it went in: total: Input should "
        "be a valid number (null may stand for NaN"
    )
    result = flowkit("send", "shop.py", "orders.received", '{"id": 1, "total": NaN}')
    assert (result.code, result.out, result.err.startswith(f"flowkit: {why}")) == (1, "", True), result.err
    lines = flowkit("send", "shop.py", "orders.received", stdin=b'{"id": 1}\n{"id": 2, "total": NaN}\n')
    assert lines.code == 1
    assert lines.err.startswith(f"flowkit: nothing was sent\nflowkit: line 2: {why}"), lines.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["dead", "list", "--flow", "shop.acept"], 1),
        (["dead", "list", "--group", "--flow", "shop.acept"], 1),
        (["dead", "retry", "--flow", "accept"], 1),
        (["dead", "discard", "--flow", "shop.acept"], 1),
        (["pause", "accept"], 2),
        (["scale", "shop.acept", "2"], 2),
        (["subscriptions", "remove", "accept"], 2),
    ],
)
def test_a_flow_that_is_misspelt_is_told_with_the_one_that_is_meant(
    flowkit: Terminal, arguments: list[str], code: int
) -> None:
    """An empty list of dead letters would say that all is well."""
    flowkit("send", "shop.py", "orders.received", '{"id": 1}')
    result = flowkit(*arguments)
    assert (result.code, result.out) == (code, "")
    assert f"no flow {'or app ' * (arguments[0] in ('pause', 'scale'))}" in result.err
    assert "is in this store; is shop.accept meant?" in result.err
    assert flowkit("dead", "list", "--flow", "shop.accept").code == 0


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


# ---------------------------------------------------------------- processes


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Running(NamedTuple):
    """A `flowkit run` that goes on."""

    process: subprocess.Popen[str]
    terminal: Terminal

    def workers(self, state: str = "ready") -> list[int]:
        return [pid for (pid,) in self.terminal.sql(f"SELECT pid FROM flowkit_workers WHERE state = '{state}'")]

    def effects(self) -> list[int]:
        return [id for (id,) in self.terminal.sql("SELECT id FROM effects ORDER BY id")]

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for its end. Returns the exit code and what it said."""
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said


@contextmanager
def running(flowkit: Terminal, *arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flowkit", "run", "shop.py", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        yield Running(process, flowkit)
    finally:
        process.kill()
        process.communicate()


def publish(flowkit: Terminal, count: int, deed: str = "") -> None:
    lines = "\n".join(json.dumps({"id": number, "deed": deed}) for number in range(count))
    assert flowkit("send", "shop.py", "orders.received", stdin=lines.encode() + b"\n\n").code == 0


@pytest.mark.processes
def test_a_killed_worker_is_replaced_and_everything_takes_effect_once(flowkit: Terminal) -> None:
    publish(flowkit, 300, "sleep")
    with running(flowkit, "--workers", "2", "--until-idle") as run:
        until(lambda: bool(run.workers()) and len(run.effects()) >= 20)
        os.kill(run.workers()[0], signal.SIGKILL)
        code, said = run.end()
    assert code == 0, said
    assert "died (SIGKILL)" in said
    assert run.effects() == list(range(300))
    assert run.workers() == []
    ledger = flowkit("audit", "--json")
    assert ledger.code == 0
    assert ledger.json["applied"] == 600


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_the_grace(flowkit: Terminal, number: signal.Signals) -> None:
    publish(flowkit, 5000, "sleep")
    with running(flowkit, "--workers", "2", "--grace", "20s") as run:
        until(lambda: len(run.workers()) == 2 and run.effects())
        run.process.send_signal(number)
        began = time.monotonic()
        code, said = run.end()
    assert code == 0, said
    assert time.monotonic() - began < 20
    assert run.workers() == run.workers("draining") == []
    assert 0 < len(run.effects()) == len(set(run.effects())) < 5000
    assert flowkit("audit").code == 0
    assert flowkit.sql("SELECT count(*) FROM flowkit_messages WHERE worker IS NOT NULL") == [(0,)]


@pytest.mark.processes
def test_a_second_signal_ends_it_at_once(flowkit: Terminal) -> None:
    publish(flowkit, 1, "hang")
    with running(flowkit, "--grace", "10m") as run:
        until((flowkit.folder / "hanging").exists)
        # Two of one number that wait at the same time are one signal.
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGTERM)
        code, said = run.end()
    assert (code, "killed at the second signal" in said) == (130, True), said
    assert flowkit("audit").code == 0


@pytest.mark.processes
def test_a_handler_that_hangs_past_the_grace_does_not_keep_it(flowkit: Terminal) -> None:
    publish(flowkit, 1, "hang")
    with running(flowkit, "--grace", "500ms") as run:
        until((flowkit.folder / "hanging").exists)
        run.process.send_signal(signal.SIGTERM)
        run.end(30)
    assert flowkit("audit").code == 0
    assert flowkit.sql("SELECT count(*) FROM flowkit_messages") == [(1,)]


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_their_supervisor_is_killed(flowkit: Terminal) -> None:
    publish(flowkit, 1)
    with running(flowkit, "--workers", "2") as run:
        until(lambda: len(run.workers()) == 2)
        pids = run.workers()
        run.process.kill()
        run.process.wait()
        until(lambda: not any(alive(pid) for pid in pids), 30)
    assert run.workers() == [], "they left in order"


@pytest.mark.processes
def test_a_flow_that_stopped_is_the_exit_code(flowkit: Terminal) -> None:
    publish(flowkit, 1, "commit")
    with running(flowkit, "--until-idle") as run:
        code, said = run.end()
    assert code == 1, said
    assert "flow shop.accept is stopped" in said
    assert "Traceback" not in said


@pytest.mark.processes
def test_until_idle_says_what_it_waits_for(flowkit: Terminal) -> None:
    flowkit("send", "shop.py", "notes", "x", "--delay", "8s")
    with running(flowkit, "--until-idle", "--flows", "note, shop.done") as run:
        code, said = run.end()
    assert code == 0, said
    assert said.count("only delayed messages and retries are left; waiting for 1") == 1
    assert flowkit("audit", "--json").json["flows"]["shop.note"]["applied"] == 1


@pytest.mark.processes
@pytest.mark.parametrize("patch", ["gevent.monkey.patch_all", "eventlet.monkey_patch"])
@pytest.mark.parametrize("command", [["run", "shop.py", "--until-idle"], ["check", "shop.py"]], ids=["run", "check"])
def test_an_app_that_replaces_threads_is_refused_by_the_librarys_name(
    shop: Path, patch: str, command: list[str]
) -> None:
    library = patch.partition(".")[0]
    (shop / "shop.py").write_text(f"import {patch.rpartition('.')[0]}\n{patch}()\n{APP}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flowkit", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"lets {library} replace thread.start_new_thread" in done.stderr
