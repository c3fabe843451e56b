"""Residue: the settings, names and locks that a handler's statement leaves on its transaction or connection."""

import re
from functools import lru_cache
from secrets import token_hex

_TEXT = re.compile(
    r"--[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|\b[eE]'(?:[^'\\]|''|\\.)*'|(?:\b[xXbBnN])?'(?:[^']|'')*'|(\$\w*\$).*?\1|"
    r'(?<=\S)\s+|\s+(?=\S)|"(?:[^"]|"")*"',
    re.DOTALL,
)
"""Comments, texts and spaces of SQL: a space stands for each of them. A quoted name loses its quotes."""
_ENDING = re.compile(
    r"(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|"
    r"set\s+(?:(?:local|session)\s+)?(?:characteristics|transaction\w*)|"
    r"rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE,
)
"""Words that end a transaction, or change what it is: FlowKit begins it."""
_PASSING = re.compile(
    r"set\s+constraints\b|declare\b(?!.*\bwith\s+hold\b)|create\b.*\bon\s+commit\s+drop\b|"
    r"savepoint\b|release\b|rollback\b",
    re.IGNORECASE,
)
"""Names that end with the transaction. Those of savepoints too: another message could go back to one."""
_LASTING = re.compile(
    r"(?:prepare|deallocate|declare|listen|unlisten|load|discard|attach|detach|"
    r"create\s+(?:(?:or\s+replace|global|local)\s+)*temp(?:orary)?)\b|(?!insert\b|merge\b).*\binto\s+(?:(?:local|global)\s+)?temp(?:orary)?\b|"
    r".*\bpg_temp\s*\.|.*\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"(?:set|reset)\b|update\s+(?:pg_catalog\s*\.\s*)?pg_settings\b|.*\bset_config\s*\(", re.IGNORECASE
)
_EXPLAIN = re.compile(r"explain\b\s*(?:\([^)]*\)|analy[sz]e\b|verbose\b|\s)*", re.IGNORECASE)
"""The words before a statement that ANALYZE executes."""
_TRIGGER = re.compile(r"create\s+(?:temp(?:orary)?\s+)?trigger\b", re.IGNORECASE)
"""SQLite's triggers hold statements, and an END of their own."""
_PRAGMA = re.compile(r"pragma\b(?:\s+(?:\w+\s*\.\s*)?(\w+)\s*(=|\(|$))?", re.IGNORECASE)
_TELLS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"} | {
    "foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"
}  # fmt: skip
"""The pragmas that take an argument and change nothing."""
TOKEN = f"flowkit_{token_hex(8)}"
"""A savepoint set before a handler gets the transaction. It is gone if the handler ended that transaction. Nobody can
name it who does not look for it here."""
OWN = f"{TOKEN}_message"
"""The savepoint of one message, where others share its transaction."""
LONG = 10_000
"""Statements of more characters hold data: they are not kept in memory with what was found out about them."""


class Residue:
    """The kinds of residue, by how long it lasts. Plain bits, which cost a statement nothing: flags of `enum` do."""

    NONE = 0
    SETTING = 1
    """A setting, a role: put back within the transaction."""
    LASTING = 2
    """A name or a lock that lives as long as its connection, which is not used again."""
    PASSING = 4
    """A name that ends with the transaction."""
    DRIVER = 8
    """Whatever a handler did to the driver's connection, unseen."""


def residue(statement: str) -> int:
    """The residue of a statement. A function that it calls may leave more, unseen: see `App.flow(settings=)`."""
    return _found(statement)[0] if len(statement) < LONG else _look(statement)[0]


def refusal(statement: str) -> str:
    """The part of a statement that a handler may not execute, because it ends the transaction or sets a pragma."""
    return _found(statement)[1] if len(statement) < LONG else _look(statement)[1]


def _look(statement: str) -> tuple[int, str]:
    left, refused, inside = Residue.NONE, "", False
    for some in _TEXT.sub(_plain, statement).split(";"):
        part = some.rpartition("*/")[2].strip()  # PostgreSQL's comments hold others
        left |= _residue(_EXPLAIN.sub("", part, 1) if part[:7].lower() == "explain" else part)
        inside = inside or _TRIGGER.match(part) is not None
        if inside and part.lower() == "end":
            inside = False
        else:
            refused = refused or _refusal(part)
    return left, refused


def _plain(found: re.Match[str]) -> str:
    """A quoted name without its quotes; a space in place of a comment, a text or spaces."""
    return re.sub(r"\W", "_", found[0][1:-1]) if found[0][0] == '"' else " "


_found = lru_cache(1024)(_look)


def _residue(part: str) -> int:
    if _PASSING.match(part):
        return Residue.PASSING
    if _LASTING.match(part):
        return Residue.LASTING
    return Residue.SETTING if _SETTING.match(part) else Residue.NONE


def _refusal(part: str) -> str:
    ending, pragma = _ENDING.match(part), _PRAGMA.match(part)
    if ending:
        return f"SQL {ending[1].upper()}"
    if TOKEN in part.lower():
        return "SQL with a savepoint of FlowKit's own"
    if pragma is None or (pragma[2] == "" or (pragma[2] == "(" and pragma[1].lower() in _TELLS)):
        return ""
    return f"PRAGMA {pragma[1] or '(with a quoted name)'}"
