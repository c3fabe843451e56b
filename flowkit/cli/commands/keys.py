"""Commands of the keys that sign messages."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, group

commands = group("List, rotate or require the keys that sign messages.")


@commands.command(name="list", epilog=STORE)
def keys_list(as_json: Json = False) -> None:
    """List the signing keys, without their secrets."""
    from flowkit.cli.keys import show_list

    show_list(as_json)


@commands.command(name="rotate", epilog=STORE)
def keys_rotate(
    hold: Annotated[
        str, typer.Option(help="Time for which earlier keys verify; default: the longest App(retention=), or 14d")
    ] = "",
) -> None:
    """Make a new key, with which all workers sign after a minute.

    Earlier keys verify for --hold. Use --hold 0s if a key has leaked: messages signed by it become dead letters after
    two minutes. Exit code 2 if --hold is not 0s, and shorter than the longest App(retention=).
    """
    from flowkit.cli.keys import rotate

    rotate(hold)


@commands.command(name="require", epilog=STORE)
def keys_require() -> None:
    """Refuse unsigned messages from now on.

    After an upgrade, unsigned messages from earlier versions are accepted for 14 days, or for the longest
    App(retention=) if that is longer. Run this command once they have finished. Exit code 2 while a worker of an
    earlier version runs; earlier versions cannot start afterwards.
    """
    from flowkit.cli.keys import require

    require()
