"""What somebody meets who tries FlowKit for the first time: its README, an empty folder, a narrow terminal."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from flowkit import App, ConfigError, Message, RetryPolicy
from flowkit.cli import show
from flowkit.cli.commands import cli
from flowkit.host.sockets import bind
from flowkit.settings import Settings
from flowkit.sla import agreement, planning
from flowkit.testing import Harness
from tests.support import ROOT

APP = """
from flowkit import App, web
app = App("shop")
app.flow(app.channel("notes", str), name="note")(lambda body: None)
app.flow(web.post("/notes"), name="post")(lambda body: None)
"""


def flowkit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command there, as in a fresh terminal."""
    return subprocess.run(
        [sys.executable, "-m", "flowkit", *arguments],
        cwd=folder,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


# ---------------------------------------------------------------- the README


@pytest.mark.processes
def test_the_first_example_of_the_readme_runs_as_pasted(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code, commands = re.findall(r"```(?:python|sh)\n(.*?)```", readme.partition("\n## A flow\n")[2], re.DOTALL)[:2]
    (tmp_path / "shop.py").write_text(code)
    sent = re.search(r"^flowkit (send shop\.py \S+) '(.*)'$", commands, re.MULTILINE)
    assert sent is not None
    assert flowkit(tmp_path, *sent[1].split(), sent[2]).stderr == ""
    assert "flowkit run shop.py --workers 2\n" in commands
    run = flowkit(tmp_path, "run", "shop.py", "--workers", "2", "--until-idle")
    assert (run.returncode, "order 1 accepted" in run.stderr) == (0, True), run.stderr
    balances = json.loads(flowkit(tmp_path, "audit", "--json").stdout)["flows"]
    assert {flow: one["applied"] for flow, one in balances.items()} == {"shop.accept": 1, "shop.log": 1}


@pytest.mark.processes
def test_the_tutorial_runs_as_pasted(tmp_path: Path) -> None:
    page = (ROOT / "docs/tutorial/first-app.md").read_text()
    shop, publish = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    (tmp_path / "shop.py").write_text(shop.replace("time.sleep(0.05)", "time.sleep(0)"))
    (tmp_path / "publish.py").write_text(publish)
    surroundings = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "publish.py"], cwd=tmp_path, env=surroundings, timeout=60, check=True)
    run = flowkit(tmp_path, "run", "shop.py", "--workers", "2", "--until-idle")
    assert run.returncode == 0, run.stderr
    said = re.findall(r"^shop\.sell +400 .*?yes", page, re.MULTILINE)
    assert said[-1] in flowkit(tmp_path, "audit").stdout


# ---------------------------------------------------------------- an empty folder


@pytest.mark.parametrize("command", ["check", "describe"])
def test_what_only_looks_makes_no_database(folder: Path, command: str) -> None:
    looked = flowkit(folder, command, "shop.py")
    assert (looked.returncode, looked.stderr) == (0, "")
    assert sorted(one.name for one in folder.iterdir() if one.name != "__pycache__") == ["shop.py"]


@pytest.mark.processes
def test_an_idle_run_ends_without_a_warning(folder: Path) -> None:
    """It ends before its worker has begun to hear signals."""
    run = flowkit(folder, "run", "shop.py", "--until-idle")
    assert (run.returncode, "WARNING" in run.stderr, "died" in run.stderr) == (0, False, False), run.stderr


@pytest.mark.processes
def test_run_says_where_it_serves_http(folder: Path) -> None:
    run = flowkit(folder, "run", "shop.py", "--http", "127.0.0.1:0", "--until-idle")
    assert re.search(r"app shop: serves http://127\.0\.0\.1:[1-9]\d*\n", run.stderr), run.stderr
    said = re.findall(r".*127\.0\.0\.1.*", run.stderr)
    assert len(said) == 2, said
    assert "app shop: serves operators at http://127.0.0.1:" in said[1]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("192.0.2.1:8080", "--http 192.0.2.1:8080: Cannot assign requested address; is it an address of this machine?"),
        ("127.0.0.1:65000", "--admin (by default the port of --http + 1000) 127.0.0.1:66000: write HOST:PORT, such as"),
    ],
)
def test_an_address_that_cannot_be_served_is_told_with_its_reason(folder: Path, address: str, what: str) -> None:
    run = flowkit(folder, "run", "shop.py", "--http", address, "--until-idle")
    assert (run.returncode, run.stderr.startswith(f"flowkit: {what}")) == (2, True), run.stderr


def test_a_database_that_answers_at_once_is_told_as_quick(folder: Path) -> None:
    flowkit(folder, "send", "shop.py", "notes", "one")
    said = flowkit(folder, "status").stdout
    assert re.search(r"^the store answers in (less than 0\.1|[1-9]\d*\.\d|0\.[1-9]) ms$", said, re.MULTILINE), said


def test_an_address_that_is_in_use_is_told_as_such() -> None:
    why = "Address already in use; is another program listening there"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=why):
        bind(f"127.0.0.1:{taken.getsockname()[1]}", "--http")


def test_a_library_tells_of_no_thread_that_starts_unless_all_is_wanted(folder: Path) -> None:
    """Each worker has two servers; FlowKit says where they are, once."""
    code = (
        "import logging; from flowkit.cli.logs import log; from flowkit.settings import Settings\n"
        "log(Settings(log_level=LEVEL)); said = logging.getLogger('uvicorn.error')\n"
        "said.info('Started server process'); said.warning('Invalid HTTP request')"
    )
    for level, shown in (("INFO", False), ("DEBUG", True), ("ERROR", False)):
        run = subprocess.run(
            [sys.executable, "-c", code.replace("LEVEL", repr(level))], capture_output=True, text=True, check=True
        )
        assert ("Started" in run.stderr, "Invalid" in run.stderr) == (shown, level != "ERROR")


def test_sla_init_writes_an_agreement_that_can_be_planned(tmp_path: Path) -> None:
    made = flowkit(tmp_path, "sla", "init")
    assert (made.returncode, made.stdout) == (0, "sla.toml is written; change it, then: flowkit sla plan sla.toml\n")
    text = (tmp_path / "sla.toml").read_text()
    agreed = agreement.read(tmp_path / "sla.toml")
    assert any(one.kept for one in planning.plan(agreed).choices.values())
    parts: list[type[BaseModel]] = [
        agreement.Agreement,
        agreement.Normal,
        agreement.Minimum,
        agreement.Node,
        agreement.Tier,
    ]
    for key in (key for part in parts for key in part.model_fields if key not in ("normal", "minimum", "node")):
        assert re.search(rf"^#? ?(\[{key}\.\w+\]|{key} = .*#)", text, re.MULTILINE), f"{key} is not explained"
    again = flowkit(tmp_path, "sla", "init")
    assert (again.returncode, "sla.toml exists already" in again.stderr) == (2, True)
    assert (tmp_path / "sla.toml").read_text() == text


def test_the_page_on_agreements_says_what_the_tool_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/guides/sla.md").read_text()
    (told,) = re.findall(r"`flowkit sla budget 99\.9 99\.99` \|[^|]*: ([^|]*) \|", page)
    said = [line.split()[2:] for line in flowkit(tmp_path, "sla", "budget", "99.9", "99.99").stdout.splitlines()[2:]]
    units = [[one.replace("m", " min").replace("h", " h") for one in line] for line in said]
    assert told == "; ".join(" and ".join(line) for line in units)


# ---------------------------------------------------------------- help


STORE = {"FLOWKIT_DATABASE_URL"}
SERVICES = {*STORE, "FLOWKIT_BROKER_URL", "FLOWKIT_BROKER_MANAGEMENT_URL", "FLOWKIT_DRAIN_URL"}
EVERYTHING = {f"FLOWKIT_{name.upper()}" for name in Settings.model_fields}
READ = {
    **dict.fromkeys(["sla budget", "sla plan", "sla init", "lb haproxy", "lb nginx"], frozenset[str]()),
    **dict.fromkeys(["check", "describe", "send", "status", "audit"], SERVICES),
    **dict.fromkeys([f"rollout {verb}" for verb in ("start", "shift", "promote", "rollback", "status")], SERVICES),
    **dict.fromkeys(["run", "sla measure", "sla verify"], EVERYTHING),
    "prove": {"FLOWKIT_LEASE"},
}


def commands(command: Any, *names: str) -> dict[str, str]:
    """The help of every command, by its name."""
    inner = getattr(command, "commands", {})
    if not inner:
        return {" ".join(names): command.epilog or ""}
    return {name: text for key, one in inner.items() for name, text in commands(one, *names, key).items()}


def test_every_command_names_the_variables_that_it_reads() -> None:
    helps = commands(get_command(cli))
    assert helps.keys() > READ.keys()
    for name, text in helps.items():
        assert text.startswith("Environment: "), name
        assert set(re.findall(r"FLOWKIT_\w+", text)) == READ.get(name, STORE), name


# ---------------------------------------------------------------- a narrow terminal


def test_ids_are_not_folded_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    letter, message = "01a22cd2-8148-72c2-88e0-2ad701a7cec9", "01a22cd2-ffff-72c2-88e0-2ad701a7cec9"
    died, error = "2026-01-01T00:00:00+00:00", "ValueError: " + "a long one " * 9
    row = (letter, "shop.accept", message, 16, died, "failed", error)
    show.table("Dead letters", ["letter", "flow", "message", "attempts", "died", "reason", "error"], [row])
    said = capsys.readouterr().out
    assert letter in said
    assert message in said
    assert "shop.accept" in said


# ---------------------------------------------------------------- which attempt it is


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_message_says_which_attempt_it_is(kind: str) -> None:
    app = App("shop")
    notes = app.channel("notes", str)
    seen: list[tuple[str, int]] = []

    def note(body: str, message: Message) -> None:
        seen.append((body, message.attempt))
        if body == "again" and message.attempt < 3:
            raise ValueError

    async def note_later(body: str, message: Message) -> None:
        note(body, message)

    app.flow(notes, retry=RetryPolicy(attempts=5, first="1s"))(note if kind == "plain" else note_later)
    with Harness(app) as harness:
        harness.publish(notes, "again")
        harness.publish(notes, "good")
        harness.until_quiet()
        for _ in range(3):
            harness.advance("1m")
    assert sorted(seen) == [("again", 1), ("again", 2), ("again", 3), ("good", 1)]
    assert Message("id", "source", "channel", b"").attempt == 1
