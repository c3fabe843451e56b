"""The pages of the documentation: every link leads somewhere, and the lists on reference pages are complete."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flowkit.cli.commands import cli
from flowkit.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    return {slug if not (again := slugs[:place].count(slug)) else f"{slug}-{again}" for place, slug in enumerate(slugs)}


def broken(page: Path) -> Iterator[str]:
    for link in LINK.findall(CODE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_no_page_of_the_documentation_is_missing() -> None:
    """Code, errors and settings name pages by their paths from the root."""
    files = [path for folder in ("flowkit", "connectors", "benchmarks", "tests", "examples") for path in walk(folder)]
    named = {
        (name(path), page)
        for path in [*files, ROOT / "Makefile", ROOT / "pyproject.toml"]
        for page in re.findall(r"(?<![\w/])docs/[\w/.-]+\.(?:md|png|svg)", path.read_text())
    }
    assert {where for where in named if not (ROOT / where[1]).exists()} == set()


def walk(folder: str) -> Iterator[Path]:
    suffixes, foreign = {".py", ".md", ".service", ".yaml"}, "site-packages"
    return (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes and foreign not in path.parts)


def test_the_index_names_every_page() -> None:
    pages = {name(page) for page in DOCS.rglob("*.md") if page.parent.name != "decisions"} - {"docs/README.md"}
    named = {f"docs/{link}" for link in LINK.findall((DOCS / "README.md").read_text())}
    assert pages - named == set()


# ---------------------------------------------------------------- reference pages


def commands(command: Any, *names: str) -> Iterator[tuple[str, list[str]]]:
    """Every command, with its long options."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield " ".join(names), [option for one in command.params for option in one.opts if option.startswith("--")]
    for key, one in inner.items():
        yield from commands(one, *names, key)


def test_the_reference_has_every_command_with_its_options() -> None:
    lines = (DOCS / "reference/commands.md").read_text().splitlines()
    rows = {row[1]: line for line in lines if (row := re.match(r"\| `flowkit ([\w -]+)` \|", line))}
    there = dict(commands(get_command(cli)))
    assert rows.keys() == there.keys()
    for command, options in there.items():
        assert set(re.findall(r"`(--[\w-]+)", rows[command].rpartition(" | ")[2])) == set(options), command


def test_the_reference_has_every_setting_with_its_default() -> None:
    page = (DOCS / "reference/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(FLOWKIT_\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert rows.keys() == {f"FLOWKIT_{name.upper()}" for name in Settings.model_fields}
    for setting, field in Settings.model_fields.items():
        if field.default:
            told = rows[f"FLOWKIT_{setting.upper()}"].strip("`")
            assert told in (str(field.default), f"{field.default:g}" if isinstance(field.default, float) else "")


def test_the_reference_has_every_metric() -> None:
    page = (DOCS / "reference/metrics.md").read_text()
    sources = (ROOT / "flowkit/web/metrics.py", ROOT / "flowkit/telemetry/otel.py")
    there = {
        metric
        for source in sources
        for metric in re.findall(r'Family\(\s*"(\w+)"|create_\w+\("([\w.]+)"', source.read_text())
    }
    assert len(there) > 10
    assert [metric for pair in there for metric in pair if metric and f"`{metric}" not in page] == []
