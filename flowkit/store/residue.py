"""Residue: settings, names and locks that a handler's statement leaves on its transaction or connection."""

import re
from functools import lru_cache
from secrets import token_hex

_TEXT = re.compile(
    r"--[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|\b[eE]'(?:[^'\\]|''|\\.)*'|(?:\b[xXbBnN])?'(?:[^']|'')*'|(\$\w*\$).*?\1|"
    r'(?<=\S)\s+|\s+(?=\S)|"(?:[^"]|"")*"',
    re.DOTALL,
)
"""Comments, string literals and spaces of SQL, each replaced by one space; and quoted names, replaced by their text."""
_ENDING = re.compile(
    r"(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|"
    r"set\s+(?:(?:local|session)\s+)?(?:characteristics|transaction\w*)|"
    r"rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE,
)
"""Words that end a transaction or change its kind."""
_PASSING = re.compile(
    r"set\s+constraints\b|declare\b(?!.*\bwith\s+hold\b)|create\b.*\bon\s+commit\s+drop\b|"
    r"savepoint\b|release\b|rollback\b",
    re.IGNORECASE,
)
"""Statements whose names end with the transaction; savepoints too, because another message could roll back to one."""
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
"""The words before the statement that EXPLAIN ANALYZE executes."""
_TRIGGER = re.compile(r"create\s+(?:temp(?:orary)?\s+)?trigger\b", re.IGNORECASE)
"""The beginning of a trigger. SQLite's triggers contain statements, and an END of their own."""
_PRAGMA = re.compile(r"pragma\b(?:\s+(?:\w+\s*\.\s*)?(\w+)\s*(=|\(|$))?", re.IGNORECASE)
_TELLS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"} | {
    "foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"
}  # fmt: skip
"""The pragmas that take an argument and change nothing."""
TOKEN = f"flowkit_{token_hex(8)}"
"""A savepoint that FlowKit sets before a handler uses the transaction. It is missing if the handler ended the
transaction. Its name is random, so that a handler cannot guess it."""
OWN = f"{TOKEN}_message"
"""The savepoint of one message that shares its transaction with others."""
LONG = 10_000
"""Characters of a statement from which its result is not cached: a long statement contains data."""


class Residue:
    """Kinds of residue, by how long it lasts. They are plain bits, because flags of `enum` cost time per statement."""

    NONE = 0
    SETTING = 1
    """A setting or a role: FlowKit restores it within the transaction."""
    LASTING = 2
    """A name or a lock that lives as long as its connection. FlowKit does not use the connection again."""
    PASSING = 4
    """A name that ends with the transaction."""
    DRIVER = 8
    """Anything that a handler did by the driver's connection, unseen."""


def residue(statement: str) -> int:
    """Return the residue of a statement. A called function may leave more, unseen: see `App.flow(settings=)`."""
    return _found(statement)[0] if len(statement) < LONG else _look(statement)[0]


def refusal(statement: str) -> str:
    """Return the part of a statement that is forbidden, because it ends the transaction or sets a pragma; or ""."""
    return _found(statement)[1] if len(statement) < LONG else _look(statement)[1]


def _look(statement: str) -> tuple[int, str]:
    left, refused, inside = Residue.NONE, "", False
    for some in _TEXT.sub(_plain, statement).split(";"):
        part = some.rpartition("*/")[2].strip()  # PostgreSQL's comments may be nested
        left |= _residue(_EXPLAIN.sub("", part, 1) if part[:7].lower() == "explain" else part)
        inside = inside or _TRIGGER.match(part) is not None
        if inside and part.lower() == "end":
            inside = False
        else:
            refused = refused or _refusal(part)
    return left, refused


def _plain(found: re.Match[str]) -> str:
    """Return a quoted name without its quotes; a space for a comment, a string literal or spaces."""
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
