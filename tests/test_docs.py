"""The pages of the documentation: every link leads somewhere, and the lists on reference pages are complete."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
