"""The command line."""

from flowkit.cli.commands import main

__all__ = ["main"]
