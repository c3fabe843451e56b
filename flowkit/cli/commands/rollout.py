"""Commands of versions side by side."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import SERVICES, Json, group

commands = group("Start, shift, promote or roll back a version of an app.")
OfApp = Annotated[str, typer.Option("--app", help="Name of the app, if several apps have versions")]
Weight = Annotated[int, typer.Option(min=1, max=100, help="Percent of the messages for this version")]


@commands.command(name="start", epilog=SERVICES)
def rollout_start(
    given: typer.Context,
    version: Annotated[str, typer.Argument(help="The version, as given to flowkit run --version")],
    weight: Weight = 5,
    app: OfApp = "",
    auto: Annotated[
        bool, typer.Option("--auto", help="Raise the weight step by step; roll back if the candidate is worse")
    ] = False,
    steps: Annotated[str, typer.Option(help="With --auto: the next weights, in percent")] = "25,50,100",
    every: Annotated[str, typer.Option(help="With --auto: time for which each weight is watched")] = "1m",
    errors: Annotated[
        float,
        typer.Option(min=0, max=100, help="With --auto: percentage points of failures permitted above the baseline's"),
    ] = 1.0,
    p99: Annotated[
        str,
        typer.Option(help="With --auto: longest time for 99 % of the messages, unless the baseline takes longer"),
    ] = "1s",
) -> None:
    """Start a rollout: give a version a part of the messages.

    The hash of a message's key decides which version handles it, so messages with the same key stay together. With
    --auto, the command runs until the version is promoted or rolled back. Exit code 1 if it was rolled back.
    """
    from flowkit.cli.rollout import ramp, start

    for one in () if auto else ("steps", "every", "errors", "p99"):
        if getattr(given.get_parameter_source(one), "name", "") == "COMMANDLINE":
            raise typer.BadParameter(f"--{one} is an option of automatic rollouts; add --auto")
    raise typer.Exit(start(version, weight, app, ramp(steps, every, errors, p99) if auto else None))


@commands.command(name="shift", epilog=SERVICES)
def rollout_shift(
    weight: Annotated[int, typer.Argument(min=1, max=100, metavar="PERCENT", help="Percent of the messages")],
    app: OfApp = "",
) -> None:
    """Change the weight of the candidate."""
    from flowkit.cli.rollout import shift

    shift(weight, app)


@commands.command(name="promote", epilog=SERVICES)
def rollout_promote(
    version: Annotated[
        str | None, typer.Argument(help="The version; default: the candidate; '(none)' for instances without --version")
    ] = None,
    app: OfApp = "",
) -> None:
    """Give all messages to a version.

    The other version is then drained, and can be stopped.
    """
    from flowkit.cli.rollout import promote

    promote(version, app)


@commands.command(name="rollback", epilog=SERVICES)
def rollout_rollback(app: OfApp = "") -> None:
    """Give all messages to the baseline again.

    The candidate's dead letters are retried there.
    """
    from flowkit.cli.rollout import rollback

    rollback(app)


@commands.command(name="status", epilog=SERVICES)
def rollout_status(app: OfApp = "", as_json: Json = False) -> None:
    """Show the versions of an app, with their weights and figures."""
    from flowkit.cli.rollout import status

    status(app, as_json)
