"""Residue: the settings, names and locks that a handler's statement leaves on its transaction or connection."""

import re
from enum import IntFlag
from functools import lru_cache

_BEFORE = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_ENDING = re.compile(
    _BEFORE + r"(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|"
    r"rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
)
_SETTING = re.compile(_BEFORE + r"(?:set|reset)\b|.*\bset_config\s*\(", re.IGNORECASE | re.DOTALL)
_LASTING = re.compile(
    _BEFORE
    + r"(?:prepare|deallocate|declare|listen|unlisten|load|discard|attach|detach|"
    + r"create\s+(?:(?:or\s+replace|global|local)\s+)*temp(?:orary)?)\b"
    + r"|.*\binto\s+temp(?:orary)?\b|.*\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(",
    re.IGNORECASE | re.DOTALL,
)
_PASSING = re.compile(
    _BEFORE + r"(?:declare\b(?!.*\bwith\s+hold\b)|create\b.*\bon\s+commit\s+drop\b)", re.IGNORECASE | re.DOTALL
)
_PRAGMA = re.compile(_BEFORE + r"pragma\s+(?:\w+\.)?(\w+)\s*(=|\(|;|$)", re.IGNORECASE | re.DOTALL)
_TELLS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"} | {
    "foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"
}  # fmt: skip
"""The pragmas that take an argument and change nothing."""


class Residue(IntFlag):
    """The kinds of residue, by how long it lasts."""

    NONE = 0
    SETTING = 1
    """A setting, a role: put back within the transaction."""
    LASTING = 2
    """A name or a lock that lives as long as its connection, which is not used again."""
    PASSING = 4
    """A name that ends with the transaction."""


@lru_cache(1024)
def residue(statement: str) -> Residue:
    """The residue of a statement. A function that it calls may leave more, unseen: see `App.flow(settings=)`."""
    if _LASTING.match(statement):
        return Residue.PASSING if _PASSING.match(statement) else Residue.LASTING
    return Residue.SETTING if _SETTING.match(statement) else Residue.NONE


@lru_cache(1024)
def refusal(statement: str) -> str:
    """The part of a statement that a handler may not execute, because it ends the transaction or sets a pragma."""
    ending, pragma = _ENDING.match(statement), _PRAGMA.match(statement)
    if ending:
        return f"SQL {ending[1].upper()}"
    sets = pragma and (pragma[2] == "=" or (pragma[2] == "(" and pragma[1].lower() not in _TELLS))
    return f"PRAGMA {pragma[1]}" if pragma and sets else ""
