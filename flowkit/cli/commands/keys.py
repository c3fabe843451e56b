"""Commands of the keys that sign messages."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, group

commands = group("Keys that sign messages: list, rotate, require them.")


@commands.command(name="list", epilog=STORE)
def keys_list(as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from flowkit.cli.keys import show_list

    show_list(as_json)


@commands.command(name="rotate", epilog=STORE)
def keys_rotate(
    hold: Annotated[
        str, typer.Option(help="How long the keys before verify, if not for the longest App(retention=), or 14d")
    ] = "",
) -> None:
    """Make a new key, by which all workers sign a minute later.

    Messages that were signed before are taken for --hold. With --hold 0s they are dead letters after two minutes: for
    a key that somebody else knows. Exit code 2 for another time that is shorter than the retention of an app.
    """
    from flowkit.cli.keys import rotate

    rotate(hold)


@commands.command(name="require", epilog=STORE)
def keys_require() -> None:
    """Take no unsigned messages any more.

    After an upgrade, messages that versions before signed not are taken for 14 days, or for the longest
    App(retention=) if that is more. Write this once they are at their end. Exit code 2 while a worker of a version
    before runs; such versions do not start afterwards.
    """
    from flowkit.cli.keys import require

    require()
