"""Commands of subscribed flows."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, Yes, group

commands = group("The flows that are subscribed: list, remove or rename them.")
FullName = Annotated[str, typer.Argument(metavar="APP.FLOW", help="The full name of a flow")]


@commands.command(name="list", epilog=STORE)
def subscriptions_list(as_json: Json = False) -> None:
    """List the flows that get messages, and those that no app has."""
    from flowkit.cli.subscriptions import show_list

    show_list(as_json)


@commands.command(name="remove", epilog=STORE)
def subscriptions_remove(flow: FullName, yes: Yes = False) -> None:
    """Remove a flow that no app has any more.

    Waiting messages and dead letters are discarded, and counted so in its ledger. Exit code 2 without --yes when
    there are some and nobody can be asked.
    """
    from flowkit.cli.subscriptions import remove

    remove(flow, yes)


@commands.command(name="move", epilog=STORE)
def subscriptions_move(flow: FullName, name: FullName) -> None:
    """Rename a flow, with all its messages.

    Its waiting messages, also those at the broker, its inbox, its dead letters and its ledger go along. All instances
    have to be stopped.
    """
    from flowkit.cli.subscriptions import move

    move(flow, name)
