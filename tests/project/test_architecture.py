"""docs/architecture.md against the code: each file, folder, class, method and function that the page names is there.

The page's own convention: paths are below flowkit/; a file without a folder is in a folder that its row or its section
names."""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
ELSEWHERE = ("tests/", "benchmarks/", "docs/", "deploy/", "examples/")
FENCED = re.compile(r"^( *)```.*?^ *```$", re.MULTILINE | re.DOTALL)
TOKEN = re.compile(r"`([^`]+)`")
PATH = re.compile(r"[\w/.-]*(?:\w\.(?:py|md|toml)|\w/)")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
NO_MODULES = {"db", "flowkit"}
"""A session of a handler; the package, also in names of queues and entry points."""
OF_THE_PROJECT = {"pyproject.toml", "README.md", "CHANGELOG.md"}


class Named(NamedTuple):
    """A name in backticks, with the file that stands in front of its brackets."""

    text: str
    file: Path | None


# ---------------------------------------------------------------- the page


def blocks(section: str) -> Iterator[str]:
    """Paragraphs, rows of tables and items of lists. A row begins with the folder that its table's heading names."""
    gathered, folder = "", ""
    lines = [*section.splitlines(), ""]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if gathered and (not line.strip() or re.match(r"\s*(?:[-*]|\d+\.) |#|\|", line)):
            yield gathered
            gathered = ""
        if line.startswith("|") and following.startswith("|--"):
            folder = next((f"`{one}` " for one in TOKEN.findall(line) if one.endswith("/")), "")
        elif line.startswith("|"):
            yield from () if line.startswith("|--") else (folder + line,)
        elif not line.startswith("#"):
            gathered = f"{gathered} {line.strip()}".strip()


def sections(page: str) -> list[str]:
    """The sections of a page, without code."""
    return re.split(r"^(?=## )", FENCED.sub("", page), flags=re.MULTILINE)


def found(token: str, folders: Sequence[Path]) -> Path | None:
    """The file of a path. `folders`: those that were named before it, the last one first."""
    if token.startswith(ELSEWHERE) or token in OF_THE_PROJECT:
        places: list[Path] = [ROOT]
    elif "/" in token.rstrip("/"):
        places = [ROOT / "flowkit"]
    else:
        top = ROOT / "flowkit"
        places = [top, *folders] if token.endswith("/") else [*folders, top]
    return next((place / token for place in places if (place / token).exists()), None)


def read(block: str, folders: list[Path]) -> Iterator[str | Named]:
    """The mistakes among the paths of a block, and its names with their files. Adds its folders to `folders`."""
    file, end = None, 0
    for match in TOKEN.finditer(block):
        token, between = match[1], block[end : match.start()]
        opened = file is not None and re.fullmatch(r" \((?:the )?|, | and |,? or ", between) is not None
        end = match.end()
        if PATH.fullmatch(token) and token != "flowkit/":
            file = found(token, folders)
            if file is None:
                yield f"{token} is not there: {block[:70]}"
                continue
            folders.insert(0, file if file.is_dir() else file.parent)
        elif not PATH.fullmatch(token):
            file = file if opened else None
            yield Named(token, file)


# ---------------------------------------------------------------- the code


@cache
def tops(file: Path) -> dict[str, set[str]]:
    """Each name that a module defines, with the names inside it if it is a class."""
    there = dict[str, set[str]]()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            there[node.name] = inside(node) | {
                f"<{base.id if isinstance(base, ast.Name) else getattr(base, 'attr', '')}" for base in node.bases
            }
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            there[node.name] = set()
        else:
            for one in ast.walk(node):
                if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                    there.setdefault(one.id, set())
    return there


def inside(class_: ast.ClassDef) -> set[str]:
    names = set[str]()
    for node in ast.walk(class_):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


@cache
def modules() -> list[Path]:
    return sorted([*(ROOT / "flowkit").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


@cache
def members(name: str) -> frozenset[str]:
    """The names in all classes of a name, and in the classes that they are made of."""
    names = set[str]()
    for one in [tops(module)[name] for module in modules() if name in tops(module)]:
        names |= one
    for base in {name[1:] for name in names if name.startswith("<")} - {name, ""}:
        names |= members(base)
    return frozenset(names)


def in_file(name: str, file: Path) -> bool:
    """Whether a file, or a file of a folder, defines a name: at its top or in one of its classes."""
    files = sorted(file.rglob("*.py")) if file.is_dir() else [file]
    first, _, rest = name.partition(".")
    return any(
        (first in there and (not rest or rest in members(first)))
        or (not rest and any(first in one for one in there.values()))
        for there in (tops(one) for one in files)
    )


def missing(named: Named) -> str | None:
    name = re.sub(r"\(.*", "", named.text)
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        return None
    if named.file is not None and named.file.suffix in ("", ".py"):
        return None if in_file(name, named.file) else f"{name} is not in {named.file.relative_to(ROOT)}"
    if not DOTTED.fullmatch(name) or name.endswith((".dev", ".com")):
        return None
    first, rest = name.split(".", 1)
    if first[0].isupper():
        return None if rest.split(".")[0] in members(first) else f"{name} is nowhere"
    files = [module for module in modules() if module.stem == first or module.parent.name == first]
    if not files or first in NO_MODULES:
        return None
    return None if any(in_file(rest.split(".")[0], file) for file in files) else f"{name} is nowhere"


def mistakes(page: str) -> Iterator[str]:
    for section in sections(page):
        folders = list[Path]()
        for block in blocks(section):
            for one in read(block, inside := list(folders)):
                wrong = one if isinstance(one, str) else missing(one)
                if wrong:
                    yield wrong
            if not block.startswith(("|", "`")):  # the folders of a row are those of the row alone
                folders = inside


# ---------------------------------------------------------------- tests


def test_everything_that_the_page_names_is_there() -> None:
    assert list(mistakes(PAGE.read_text())) == []


def test_the_folders_stand_in_the_order_of_the_layers() -> None:
    section = next(one for one in sections(PAGE.read_text()) if one.startswith("## Folders and files"))
    rows = [block.split("|")[1] for block in blocks(section) if block.startswith("|")]
    told = [{re.sub(r"\.py$|/$", "", one) for one in TOKEN.findall(row)} for row in rows]
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert told == [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]


def test_a_section_fits_a_screen() -> None:
    long = {one.splitlines()[0]: many for one in sections(PAGE.read_text()) if (many := len(one.splitlines())) > 35}
    assert long == {}


@pytest.mark.parametrize(
    "wrong",
    [
        "Files: `engine/slots.py`.",
        "In `store/`, `nothing.py` ends it.",
        "| `engine/` | `pipeline.py`, `sqlite.py` |",
        "`Pipeline.walk` decodes.",
        "`engine/pipeline.py` (`Lane.step`) decodes.",
        "`engine/pipeline.py` (`Pipeline.run`, `walk`) decodes.",
        "`outbox.nothing` makes it.",
    ],
)
def test_what_is_not_there_is_found(wrong: str) -> None:
    assert list(mistakes(wrong)) != []


@pytest.mark.parametrize(
    "right",
    [
        "Files: `engine/lane.py`, `pipeline.py` (`Pipeline.run`).",
        "| `engine/` | `async_lane.py`, `worker.py` (`Worker`) |",
        "Files in `tests/simulation/`: `world.py`.\n\n`fleet.py` (`Fleet.strike`) strikes.",
        "`HandlerConnection.failures`, `store.queue.lease(…)`, `app.publish`, `db.add`, `uvicorn.run`",
    ],
)
def test_what_is_there_is_left_alone(right: str) -> None:
    assert list(mistakes(right)) == []
