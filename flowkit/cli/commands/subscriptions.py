"""Commands of subscribed flows."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, Yes, group

commands = group("List, remove or rename flows that are subscribed.")
FullName = Annotated[str, typer.Argument(metavar="APP.FLOW", help="The full name of a flow")]


@commands.command(name="list", epilog=STORE)
def subscriptions_list(as_json: Json = False) -> None:
    """List the subscribed flows, and those that no app has any more."""
    from flowkit.cli.subscriptions import show_list

    show_list(as_json)


@commands.command(name="remove", epilog=STORE)
def subscriptions_remove(flow: FullName, yes: Yes = False) -> None:
    """Remove a flow that no app has any more.

    Its waiting messages and dead letters are discarded, and its ledger counts them as discarded. Exit code 2 without
    --yes if there are some and nobody can be asked.
    """
    from flowkit.cli.subscriptions import remove

    remove(flow, yes)


@commands.command(name="move", epilog=STORE)
def subscriptions_move(flow: FullName, name: FullName) -> None:
    """Rename a flow, with all its messages.

    Its waiting messages (those at the broker too), inbox, dead letters and ledger get the new name. Stop all instances
    first.
    """
    from flowkit.cli.subscriptions import move

    move(flow, name)
