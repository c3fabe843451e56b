"""The verdict on one attack."""

from typing import NamedTuple


class Verdict(NamedTuple):
    """One attack: what was tried, what was seen, and whether FlowKit held."""

    attack: str
    tried: str
    seen: str
    held: bool
