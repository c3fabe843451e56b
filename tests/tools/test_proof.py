"""The report of the proof: every failure has a line, and each line says what shows it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.proof import __main__ as proof
from tests.proof.__main__ import PARTS, main
from tests.proof.report import SAID, together, write
from tests.proof.rows import ROWS, WAITS, shown
from tests.proof.shown import run


def test_tests_are_named_after_rows_that_there_are() -> None:
    tests = shown()
    assert tests.keys() == ROWS.keys()
    assert not [number for number in WAITS if tests[number]], "it has a test, so it waits for nothing"
    assert sum(map(bool, tests.values())) > 50
    assert not any("test_proof.py" in test for row in tests.values() for test in row), "it only speaks of some"


def test_a_report_says_what_was_not_run(tmp_path: Path) -> None:
    assert {name.partition("-")[0] for name in PARTS} == SAID.keys()
    fuzzed = {
        "inputs": 5,
        "seed": 0,
        "fingerprint": "f",
        "transports": {"memory": {"ends": {"dead": 5}, "faults": 0, "seconds": 1}},
    }
    found = {
        "commit": "def",
        "command": "python -m x",
        "seconds": 3,
        "machine": {"cores": 2},
        "found": fuzzed,
    }
    write(tmp_path / "proof.md", {"fuzz": "hostile inputs", "chaos-sqlite": "chaos"}, {"fuzz": found}, {"fuzz"})
    said = (tmp_path / "proof.md").read_text()
    assert "- memory: 5 dead; 0 faults; 1 s\n" in said
    assert "`python -m x`, 3 s, commit def; the code has changed since.\n" in said
    assert "## Chaos\n\nNot run yet: chaos-sqlite.\n" in said
    assert "| 26 | the broker and its disk are gone | waits for a journal |" in said
    assert "| 30 | a cancelled wait for the synchronous standby | `tests/store/test_standby.py::test_row_30_" in said


def test_tests_of_rows_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "import pytest\n"
        "def test_row_1_stays(): pass\n"
        "@pytest.mark.parametrize('number', [1, 2, 3])\n"
        "def test_row_2_breaks(number): assert number < 3\n"
        "def test_other(): assert False\n"
    )
    found, status = run(tmp_path)
    assert status == 1
    assert {name: {**one, "seconds": 0} for name, one in found.items()} == {
        "test_row_1_stays": {"passed": 1, "seconds": 0},
        "test_row_2_breaks": {"passed": 2, "failure": 1, "seconds": 0},
    }


def test_slices_are_counted_together() -> None:
    one = {"seeds": 2, "failed": [], "faults": {"begin": {"kill": 1, "cut": 0}}}
    other = {"seeds": 3, "failed": [[7, "lost"]], "faults": {"begin": {"kill": 2}, "lease": {"cut": 4}}}
    assert together([one, other]) == {
        "seeds": 5,
        "failed": [[7, "lost"]],
        "faults": {"begin": {"kill": 3, "cut": 0}, "lease": {"cut": 4}},
    }


def test_a_part_is_done_for_the_code_that_it_ran_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "HOME", tmp_path)
    trees = {"old": {"flowkit": "1", "tests/chaos/app.py": "2"}, "HEAD": {"flowkit": "1", "tests/chaos/app.py": "3"}}

    def git(_: str, place: str) -> str:
        commit, _, path = place.partition(":")
        if commit not in trees:
            raise subprocess.CalledProcessError(128, "git")
        return trees[commit].get(path, "")

    monkeypatch.setattr(proof, "git", git)
    for name in ("simulation-2", "chaos-sqlite", "mutants"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"commit": "old" if name != "mutants" else "unknown"}))
    assert [name for name in PARTS if proof.done(name)] == ["simulation-2"]


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["proof", "nothing"])
    with pytest.raises(SystemExit):
        main()
    assert "no part nothing; there are simulation-1, simulation-2" in capsys.readouterr().err
