"""A question to whoever sits at the terminal."""

import sys

from flowkit.errors import ConfigError, FlowKitError
from flowkit.plain import plain


def confirm(what: str) -> None:
    """Ask whether to go on. Raises FlowKitError when the answer is no, and ConfigError where nobody can answer."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{plain(what)}; nothing was done: write --yes if that is meant")
    ask(f"{plain(what)}. Go on?")


def ask(question: str) -> None:
    """Raises FlowKitError when the answer is no."""
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise FlowKitError("nothing was done")
