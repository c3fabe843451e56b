"""Commands of dead letters."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, Json, Yes, group

commands = group("List, show, retry or discard dead letters.")
All = Annotated[bool, typer.Option("--all", help="All dead letters")]
Flow = Annotated[str | None, typer.Option(help="Only dead letters of this flow; its full name: app.flow")]
Error = Annotated[str | None, typer.Option(help="Only dead letters with this text in their error")]
Letters = Annotated[list[str] | None, typer.Argument(help="Ids of dead letters, as flowkit dead list shows them")]


@commands.command(name="list", epilog=STORE)
def dead_list(
    flow: Flow = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of dead letters, or of rows with --group")] = 50,
    group: Annotated[bool, typer.Option("--group", help="Count dead letters by flow and error")] = False,
    as_json: Json = False,
) -> None:
    """List dead letters, the oldest first."""
    from flowkit.cli.dead import show_list

    show_list(flow, error, limit, group, as_json)


@commands.command(name="show", epilog=STORE)
def dead_show(
    letter: Annotated[str, typer.Argument(help="Id of the dead letter, as flowkit dead list shows it")],
    body: Annotated[
        bool, typer.Option("--body", help="Also show the body, the stack and the values of headers")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one dead letter with its error.

    The body, the stack and the values of headers hold data: they are hidden without --body.
    """
    from flowkit.cli.dead import show

    show(letter, body, as_json)


@commands.command(name="retry", epilog=STORE)
def dead_retry(
    letters: Letters = None, flow: Flow = None, error: Error = None, all: All = False, yes: Yes = False
) -> None:
    """Send dead letters again: by id, by flow, by error, or all."""
    from flowkit.cli.dead import settle

    settle("retry", letters or [], flow, error, all, yes)


@commands.command(name="discard", epilog=STORE)
def dead_discard(
    letters: Letters = None, flow: Flow = None, error: Error = None, all: All = False, yes: Yes = False
) -> None:
    """Discard dead letters for good: by id, by flow, by error, or all."""
    from flowkit.cli.dead import settle

    settle("discard", letters or [], flow, error, all, yes)
