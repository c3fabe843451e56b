"""Commands of dead letters."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, Yes, group

commands = group("List, show, retry or discard dead letters.")
All = Annotated[bool, typer.Option("--all", help="All dead letters")]
Flow = Annotated[str | None, typer.Option(help="Only those of this flow, by its full name: app.flow")]
Error = Annotated[str | None, typer.Option(help="Only those with this text in the error")]
Letters = Annotated[list[str] | None, typer.Argument(help="Ids of dead letters")]


@commands.command(name="list", epilog=STORE)
def dead_list(
    flow: Flow = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(min=1, help="The largest number of letters to list")] = 50,
    group: Annotated[bool, typer.Option("--group", help="Count the letters by flow and error")] = False,
    as_json: Json = False,
) -> None:
    """List dead letters, the oldest first."""
    from flowkit.cli.dead import show_list

    show_list(flow, error, limit, group, as_json)


@commands.command(name="show", epilog=STORE)
def dead_show(
    letter: Annotated[str, typer.Argument(help="The id of the dead letter")],
    body: Annotated[bool, typer.Option("--body", help="Show also the parts with data: body, stack, headers")] = False,
    as_json: Json = False,
) -> None:
    """Show one dead letter with its error.

    The parts that hold data are hidden unless you ask for them: body, stack and values of headers.
    """
    from flowkit.cli.dead import show

    show(letter, body, as_json)


@commands.command(name="retry", epilog=STORE)
def dead_retry(
    letters: Letters = None, flow: Flow = None, error: Error = None, all: All = False, yes: Yes = False
) -> None:
    """Retry dead letters: by id, flow or error."""
    from flowkit.cli.dead import settle

    settle("retry", letters or [], flow, error, all, yes)


@commands.command(name="discard", epilog=STORE)
def dead_discard(
    letters: Letters = None, flow: Flow = None, error: Error = None, all: All = False, yes: Yes = False
) -> None:
    """Discard dead letters for good: by id, flow or error."""
    from flowkit.cli.dead import settle

    settle("discard", letters or [], flow, error, all, yes)
