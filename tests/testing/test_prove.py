"""`flowkit prove`: what it prints, and its exit codes."""

import datetime
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flowkit.cli.commands import main
from flowkit.cli.prove import _rows
from tests.support import ROOT
from tests.support.proving import FEW

pytestmark = pytest.mark.processes


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
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
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
