"""Commands of subscribed flows."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, Yes, group

commands = group("List, remove or rename the flows that are subscribed.")
FullName = Annotated[str, typer.Argument(metavar="APP.FLOW", help="Full name of a flow")]
NewName = Annotated[str, typer.Argument(metavar="APP.FLOW", help="New full name of the flow")]


@commands.command(name="list", epilog=STORE)
def subscriptions_list(as_json: Json = False) -> None:
    """List the flows that receive messages, and the orphans."""
    from flowkit.cli.subscriptions import show_list

    show_list(as_json)


@commands.command(name="remove", epilog=STORE)
def subscriptions_remove(flow: FullName, yes: Yes = False) -> None:
    """Remove a flow that no app has any more.

    Its pending messages and dead letters are discarded, and its ledger counts them as discarded. If there are any, the
    command asks first. Without a terminal and without --yes, it changes nothing and exits with code 2.
    """
    from flowkit.cli.subscriptions import remove

    remove(flow, yes)


@commands.command(name="move", epilog=STORE)
def subscriptions_move(flow: FullName, name: NewName) -> None:
    """Rename a flow and keep its messages.

    The flow keeps its pending messages, also those at the broker, its inbox, its dead letters and its ledger. Stop all
    instances first.
    """
    from flowkit.cli.subscriptions import move

    move(flow, name)
