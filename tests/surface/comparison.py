"""The differences of two surfaces, less those that were agreed."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

AGREED = Path(__file__).with_name("agreed.toml")


class Agreed(NamedTuple):
    """A difference that is meant.

    With both texts, lines with `before` continue with `after` in its place. With `before` alone, lines that contain it
    may go. With `after` alone, lines that contain it may come.
    """

    why: str
    before: str = ""
    after: str = ""


class Differences(NamedTuple):
    """Lines that went and lines that came."""

    gone: list[str]
    new: list[str]

    def of(self, wording: bool) -> "Differences":
        """Those of wording, or those of everything that programs depend on."""
        return Differences(*([one for one in lines if is_wording(one) == wording] for lines in self))

    def __str__(self) -> str:
        marked = [(one, "-") for one in self.gone] + [(one, "+") for one in self.new]
        return "".join(f"{mark} {one}\n" for one, mark in sorted(marked))


def is_wording(line: str) -> bool:
    return line.partition(" ")[0].endswith("-text")


def agreed(file: Path = AGREED) -> list[Agreed]:
    return [Agreed(**one) for one in tomllib.loads(file.read_text(encoding="utf-8")).get("agreed", [])]


def compare(before: Sequence[str], after: Sequence[str], meant: Sequence[Agreed] = ()) -> Differences:
    """What differs, less what is meant."""
    gone, new = set(before) - set(after), set(after) - set(before)
    for old in sorted(gone):
        renamed = old
        for one in meant:
            if one.before and one.after:
                renamed = renamed.replace(one.before, one.after)
        if renamed in after:
            gone.discard(old)
            new.discard(renamed)
    removed = [one.before for one in meant if not one.after]
    added = [one.after for one in meant if not one.before]
    return Differences(
        sorted(line for line in gone if not any(one in line for one in removed)),
        sorted(line for line in new if not any(one in line for one in added)),
    )
