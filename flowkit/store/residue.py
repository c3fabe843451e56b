"""Residue: the settings, names and locks that a handler's statement leaves on its transaction or connection."""

import re
from functools import lru_cache

_TEXT = re.compile(
    r"--[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|(?:\b[eExXbBnN])?'(?:[^']|'')*'|(\$\w*\$).*?\1|(?<=\S)\s+|\s+(?=\S)|\"",
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
    r"set\s+constraints\b|declare\b(?!.*\bwith\s+hold\b)|create\b.*\bon\s+commit\s+drop\b", re.IGNORECASE
)
_LASTING = re.compile(
    r"(?:prepare|deallocate|declare|listen|unlisten|load|discard|attach|detach|"
    r"create\s+(?:(?:or\s+replace|global|local)\s+)*temp(?:orary)?)\b|(?!insert\b|merge\b).*\binto\s+temp(?:orary)?\b|"
    r".*\bpg_temp\s*\.|.*\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"(?:set|reset)\b|update\s+(?:pg_catalog\s*\.\s*)?pg_settings\b|.*\bset_config\s*\(", re.IGNORECASE
)
_PRAGMA = re.compile(r"pragma\s+(?:\w+\s*\.\s*)?(\w+)\s*(=|\(|$)", re.IGNORECASE)
_TELLS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"} | {
    "foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"
}  # fmt: skip
"""The pragmas that take an argument and change nothing."""
TOKEN = "flowkit_unit"
"""A savepoint set before a handler gets the transaction. It is gone if the handler ended that transaction."""
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
    left, refused = Residue.NONE, ""
    for part in _TEXT.sub(lambda found: "" if found[0] == '"' else " ", statement).split(";"):
        left |= _residue(part.strip())
        refused = refused or _refusal(part.strip())
    return left, refused


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
        return f"SQL with FlowKit's own savepoint {TOKEN}"
    sets = pragma and (pragma[2] == "=" or (pragma[2] == "(" and pragma[1].lower() not in _TELLS))
    return f"PRAGMA {pragma[1]}" if pragma and sets else ""
