"""Commands of versions side by side."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import SERVICES, Json, group

commands = group("Versions side by side: start, shift, promote, roll back.")
OfApp = Annotated[str, typer.Option("--app", help="Which app, if several have versions")]
Weight = Annotated[int, typer.Option(min=1, max=100, help="Percent of the messages")]


@commands.command(name="start", epilog=SERVICES)
def rollout_start(
    given: typer.Context,
    version: Annotated[str, typer.Argument(help="What flowkit run --version said")],
    weight: Weight = 5,
    app: OfApp = "",
    auto: Annotated[bool, typer.Option("--auto", help="Stay, go on by steps, and roll back what is worse")] = False,
    steps: Annotated[str, typer.Option(help="With --auto: the next percents")] = "25,50,100",
    every: Annotated[str, typer.Option(help="With --auto: how long each of them is watched")] = "1m",
    errors: Annotated[
        float, typer.Option(min=0, max=100, help="With --auto: percent that may fail beyond the baseline's")
    ] = 1.0,
    p99: Annotated[
        str, typer.Option(help="With --auto: the longest time in flight of 99 %, if the baseline's is shorter")
    ] = "1s",
) -> None:
    """Give a version a share of the messages.

    The hash of its key decides about a message, so that the messages of one key stay together. With --auto, the version
    is promoted in the end, or rolled back. Exit code 1 if it was rolled back.
    """
    from flowkit.cli.rollout import ramp, start

    for one in () if auto else ("steps", "every", "errors", "p99"):
        if getattr(given.get_parameter_source(one), "name", "") == "COMMANDLINE":
            raise typer.BadParameter(f"--{one} says how a rollout goes on by itself; add --auto")
    raise typer.Exit(start(version, weight, app, ramp(steps, every, errors, p99) if auto else None))


@commands.command(name="shift", epilog=SERVICES)
def rollout_shift(
    weight: Annotated[int, typer.Argument(min=1, max=100, metavar="PERCENT", help="Of the messages")], app: OfApp = ""
) -> None:
    """Let the candidate have another share."""
    from flowkit.cli.rollout import shift

    shift(weight, app)


@commands.command(name="promote", epilog=SERVICES)
def rollout_promote(
    version: Annotated[
        str | None, typer.Argument(help="The candidate, if nothing else is said; '(none)' for the one without a name")
    ] = None,
    app: OfApp = "",
) -> None:
    """Let a version have all messages.

    The one before it is drained, and can be stopped.
    """
    from flowkit.cli.rollout import promote

    promote(version, app)


@commands.command(name="rollback", epilog=SERVICES)
def rollout_rollback(app: OfApp = "") -> None:
    """Let the baseline have all messages again.

    Also those that died at the candidate.
    """
    from flowkit.cli.rollout import rollback

    rollback(app)


@commands.command(name="status", epilog=SERVICES)
def rollout_status(app: OfApp = "", as_json: Json = False) -> None:
    """Show the versions of an app, what each gets and how it does."""
    from flowkit.cli.rollout import status

    status(app, as_json)
