"""Commands of versions side by side."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import SERVICES, Json, group

commands = group("Run versions side by side: start, shift, roll back.")
OfApp = Annotated[str, typer.Option("--app", help="The app, if several have versions")]
Weight = Annotated[int, typer.Option(min=1, max=100, help="Percent of the messages")]


@commands.command(name="start", epilog=SERVICES)
def rollout_start(
    given: typer.Context,
    version: Annotated[str, typer.Argument(help="The version, as given to flowkit run --version")],
    weight: Weight = 5,
    app: OfApp = "",
    auto: Annotated[bool, typer.Option("--auto", help="Raise the weight by steps, or roll back")] = False,
    steps: Annotated[str, typer.Option(help="With --auto: the next weights, in percent")] = "25,50,100",
    every: Annotated[str, typer.Option(help="With --auto: how long each weight is watched")] = "1m",
    errors: Annotated[
        float, typer.Option(min=0, max=100, help="With --auto: percent that may fail more than at the baseline")
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
    weight: Annotated[int, typer.Argument(min=1, max=100, metavar="PERCENT", help="Its new weight")],
    app: OfApp = "",
) -> None:
    """Change the candidate's share of the messages."""
    from flowkit.cli.rollout import shift

    shift(weight, app)


@commands.command(name="promote", epilog=SERVICES)
def rollout_promote(
    version: Annotated[
        str | None, typer.Argument(help="The version; by default the candidate; '(none)' for the one without a name")
    ] = None,
    app: OfApp = "",
) -> None:
    """Give a version all messages.

    The version before it is drained, and can then be stopped.
    """
    from flowkit.cli.rollout import promote

    promote(version, app)


@commands.command(name="rollback", epilog=SERVICES)
def rollout_rollback(app: OfApp = "") -> None:
    """Give the baseline all messages again.

    Dead letters of the candidate are sent again, to the baseline.
    """
    from flowkit.cli.rollout import rollback

    rollback(app)


@commands.command(name="status", epilog=SERVICES)
def rollout_status(app: OfApp = "", as_json: Json = False) -> None:
    """Show the versions of an app, with their shares and figures."""
    from flowkit.cli.rollout import status

    status(app, as_json)
