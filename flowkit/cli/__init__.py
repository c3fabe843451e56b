"""The command line."""

from flowkit.host.init import obey_signals

obey_signals()  # before the other imports, which take their time

from flowkit.cli.commands import main  # noqa: E402

__all__ = ["main"]
