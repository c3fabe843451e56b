"""The language of documentation, docstrings, comments, help, errors and logs: plain sentences, short paragraphs, one
word for one thing.

The words come from the column *instead of* of docs/reference/glossary.md."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs/reference/glossary.md"
MOST_WORDS = 120
"""Of a paragraph."""

WRITTEN_BY_TOOLS = {"docs/proof.md"}
QUOTED = {("docs/guides/security.md", "told of"), ("flowkit/web/balancer.py", "backend")}
"""(page, words): the page shows what a program prints, or the module writes a word of HAProxy."""

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
MODULES = sorted((ROOT / "flowkit").rglob("*.py"))
LOGS, LEVELS = {"_log", "log"}, {"debug", "info", "warning", "error", "exception", "critical"}
"""Loggers, and their methods that take a text."""
OPENER = re.compile(r"(?:Who|What|So many)\s+[\w…%]")
CODE = re.compile(r"^( *)```.*?^ *```$", re.MULTILINE | re.DOTALL)


class Text(NamedTuple):
    """A paragraph, an item of a list, a cell of a table, a docstring's paragraph, or a comment."""

    line: int
    words: str
    prose: bool = True


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---------------------------------------------------------------- rules


@cache
def replaced() -> dict[str, re.Pattern[str]]:
    """The words of the glossary's column *instead of* that are wrong wherever they are."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in GLOSSARY.read_text().splitlines() if line.startswith("|")]
    column, found = None, list[str]()
    for row in rows:
        cells = [cell.strip() for cell in row]
        if "instead of" in cells:
            column = cells.index("instead of")
        elif not cells[0].startswith("---") and column is not None:
            if len(cells) not in (2, 4):  # the tables of words with two senses
                column = None
                continue
            found += [word.strip() for word in re.sub(r"\([^)]*\)", "", cells[column]).split(",")]
    words = [word for word in found if word and not word.startswith("*")]
    return {word: re.compile(r"(?<![\w-])" + r"\s+".join(word.split()) + r"(?:s|'s)?(?![\w-])", re.I) for word in words}


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?:])[\"')]*\s+", text)


def mistakes(text: Text, page: str, words: bool = True) -> Iterator[str]:
    where = f"{page}:{text.line}: "
    for sentence in sentences(text.words):
        if OPENER.match(sentence) and not sentence.rstrip("\"')").endswith("?"):
            yield f"{where}opens with a pronoun, name the subject: {sentence[:70]}"
    if text.prose and (many := len(text.words.split())) > MOST_WORDS:
        yield f"{where}{many} words in a paragraph"
    for word, pattern in replaced().items() if words else ():
        if pattern.search(text.words) and (page, word) not in QUOTED:
            yield f"{where}see the glossary for another word than: {word}"


# ---------------------------------------------------------------- texts


def of_page(source: str) -> Iterator[Text]:
    """The texts of a page. Code, headings also of tables, and names in front of a paragraph are none."""
    source = CODE.sub(lambda match: "\n" * match[0].count("\n"), source)
    gathered, begin = list[str](), 0
    lines = [*source.splitlines(), ""]
    for line, (raw, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True), 1):
        item = re.match(r"\s*(?:[-*]|\d+\.) ", raw)
        if gathered and (not raw.strip() or item or raw.startswith(("#", "|"))):
            yield Text(begin, plain(" ".join(gathered)))
            gathered = []
        if raw.startswith("|"):
            if not raw.startswith("|--") and not following.startswith("|--"):
                yield from (Text(line, plain(cell), prose=False) for cell in re.split(r"(?<!\\)\|", raw)[1:-1])
        elif raw.strip() and not raw.startswith("#"):
            begin = begin if gathered else line
            gathered.append(raw[item.end() :] if item else raw.strip())


def plain(text: str) -> str:
    """A paragraph without its code, the targets of its links, its emphasis, and a name in bold in front of it."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"``?[^`]*``?", "…", text)).strip()
    text = re.sub(r"^(?:\d+\.\s)?\*\*[^*]*[.:?]\*\*\s*", "", text)
    return re.sub(r"\*+", "", text)


def of_module(source: str) -> Iterator[Text]:
    """Docstrings, also those of values, and comments. Comments of lines that follow each other are one text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for part in re.split(r"\n\s*\n|\n\s*(?=- )", node.value.value):
                yield Text(node.lineno, plain(" ".join(part.split())), prose=False)
    last, gathered, begin = -1, list[str](), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.string.startswith(("#!", "# type:", "# noqa")):
            continue
        if gathered and token.start[0] != last + 1:
            yield Text(begin, plain(" ".join(gathered)), prose=False)
            gathered = []
        begin = begin if gathered else token.start[0]
        last = token.start[0]
        gathered.append(token.string.lstrip("# "))
    if gathered:
        yield Text(begin, plain(" ".join(gathered)), prose=False)


def of_program(source: str) -> Iterator[Text]:
    """The texts that a program shows: help, descriptions of settings, errors and logs."""
    for node in ast.walk(ast.parse(source)):
        for part in shown(node):
            for line, text in constants(part):
                yield Text(line, plain(" ".join(text.split())), prose=False)


def shown(node: ast.AST) -> list[ast.expr]:
    """The expressions of a node whose strings a program shows."""
    match node:
        case ast.Raise(exc=ast.expr() as error):
            return [error]
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():  # a text that several calls show
            return [value] if isinstance(value, ast.Constant | ast.JoinedStr) else []
        case ast.Call(func=ast.Name(id="group"), args=[help]):
            return [help]
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=level)) if name in LOGS and level in LEVELS:
            return node.args
        case ast.Call():
            return [one.value for one in node.keywords if one.arg in ("help", "epilog", "description")]
    return []


def constants(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Each string in an expression, with its line. The values in an f-string become dots."""
    match node:
        case ast.Constant(value=str(text), lineno=line):
            yield line, text
        case ast.JoinedStr(values=parts, lineno=line):
            yield line, "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in parts)
            for one in parts:
                if isinstance(one, ast.FormattedValue):
                    yield from constants(one.value)
        case _:
            for inner in ast.iter_child_nodes(node):
                yield from constants(inner)


def found(path: Path) -> list[str]:
    page, source = name(path), path.read_text()
    texts = chain(of_module(source), of_program(source)) if path.suffix == ".py" else of_page(source)
    return [mistake for text in texts for mistake in mistakes(text, page, words=path != GLOSSARY)]


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in WRITTEN_BY_TOOLS], ids=name)
def test_a_page_is_plain(page: Path) -> None:
    assert found(page) == []


def test_the_texts_of_modules_are_plain() -> None:
    assert [one for module in MODULES for one in found(module)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "Who is fenced off raises an error.",
        "It ends. What is committed waits.",
        "- So many lanes run at once.",
        "| a | What is left is sent. |",
        "The handler gets the\npayload.",
        "All `messages` in\nhand are finished.",
        " ".join(["word"] * (MOST_WORDS + 1)),
    ],
)
def test_what_is_not_plain_is_found(wrong: str) -> None:
    assert [mistake for text in of_page(wrong) for mistake in mistakes(text, "page.md")] != []


@pytest.mark.parametrize(
    "right",
    [
        "# What a lane is\n\n## Who waits",
        "What is a lane? It receives.",
        "**What.** A lane receives.",
        "```\nWhat a payload\n```",
        "A node of RabbitMQ. The `payload`. [A page](payload.md).",
    ],
)
def test_what_is_plain_is_left_alone(right: str) -> None:
    assert [mistake for text in of_page(right) for mistake in mistakes(text, "page.md")] == []


def test_docstrings_and_comments_are_read() -> None:
    source = (
        'X = 1\n"""Who asks gets it."""\ndef f() -> None:\n    """Fine.\n\n    So many are left."""  # What is left\n'
    )
    texts = [mistake for text in of_module(source) for mistake in mistakes(text, "f.py")]
    assert len(texts) == 3


@pytest.mark.parametrize(
    "source",
    [
        'typer.Option(help="What is said")',
        'Field(description="The pay" "load")',
        'typer.Typer(help=f"{name}: the payload")',
        'EPILOG = "Who asks gets it."',
        'commands = group("The payload")',
        'raise flow.wrong(f"{name}: the payload {x} is wrong") from None',
        'raise ConfigError(": ".join([first, "the payload"]))',
        'raise ConfigError(text(first, second=f"the payload{x}" if x else ""))',
        "raise ConfigError(f\"{name}: {'the payload' if x else y}\")",
        '_log.error("the %s is away", name)',
        'log.info(f"The end. What {x} is left waits")',
    ],
)
def test_texts_that_a_program_shows_are_read(source: str) -> None:
    assert len([mistake for text in of_program(source) for mistake in mistakes(text, "f.py")]) == 1


def test_strings_that_no_program_shows_are_not_read() -> None:
    assert list(of_program('x = f("payload")\nf(name="payload")\nassert x, "payload"')) == []


def test_words_in_italics_are_left_to_the_reader() -> None:
    assert replaced().keys() >= {"payload", "in hand", "handed on", "the store is away"}
    assert not replaced().keys() & {"node", "*node*", "event", "told", "key alone", ""}
