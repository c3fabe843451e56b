"""Questions to the operator at the terminal."""

import sys

from flowkit.errors import ConfigError, FlowKitError
from flowkit.plain import plain


def confirm(what: str) -> None:
    """Ask whether to continue. Blocks. Raises FlowKitError if the answer is no, and ConfigError without a terminal."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{plain(what)}; nothing was done: write --yes to do it")
    ask(f"{plain(what)}. Continue?")


def ask(question: str) -> None:
    """Ask a question. Blocks. Raises FlowKitError if the answer is no."""
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise FlowKitError("nothing was done")
