"""What users rely on is what tests/surface/surface.txt says, so that every change of it is seen in review."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.surface.comparison import Agreed, agreed, compare

ROOT = Path(__file__).parents[2]
AT_OLDEST = f"typer=={version('typer')}" in (ROOT / "oldest.txt").read_text()


@pytest.mark.skipif(AT_OLDEST, reason="this version of Typer words its part of the help differently")
def test_the_surface_is_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "surface.txt"
    # A process of its own: reading the surface calls the command line, which changes signals and logging.
    command = [sys.executable, "-m", "tests.surface", "write", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    said, read = (one.read_text().splitlines() for one in (ROOT / "tests" / "surface" / "surface.txt", file))
    differences = compare(said, read)
    assert not any(differences), f"`make surface` writes the file anew; look at what changed:\n{differences}"


def test_a_difference_is_a_line_that_went_or_came() -> None:
    found = compare(["setting A: int", "setting B: int"], ["setting A: int", "setting B: str"])
    assert str(found) == "- setting B: int\n+ setting B: str\n"


def test_other_wording_is_told_apart() -> None:
    found = compare(["setting A: int", "setting-text A: old"], ["setting A: str", "setting-text A: new"])
    assert found.of(wording=True).new == ["setting-text A: new"]
    assert found.of(wording=False).new == ["setting A: str"]


@pytest.mark.parametrize(
    ("before", "after", "one"),
    [
        (["python Source.get()"], ["python Consumer.get()"], Agreed("a rename", "Source", "Consumer")),
        (["python Source.get()"], [], Agreed("a removal", before="Source")),
        ([], ["python Source.get()"], Agreed("an addition", after="Source")),
    ],
)
def test_what_was_agreed_is_no_difference(before: list[str], after: list[str], one: Agreed) -> None:
    assert any(compare(before, after))
    assert not any(compare(before, after, [one]))


def test_what_was_agreed_hides_nothing_else() -> None:
    renamed = Agreed("a rename", "Source", "Consumer")
    found = compare(["python Source.get()"], ["python Consumer.get(limit)"], [renamed])
    assert found.gone == ["python Source.get()"]
    assert found.new == ["python Consumer.get(limit)"]


def test_each_agreed_difference_has_a_reason() -> None:
    assert all(one.why and (one.before or one.after) for one in agreed())
