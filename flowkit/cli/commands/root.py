"""The command `flowkit`, and its commands that are in no group."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowkit import __version__
from flowkit.cli.commands.options import EVERYTHING, EXITS, SERVICES, STORE, AppName, Json

cli = typer.Typer(
    name="flowkit",
    help="Reliable messaging: flows that take effect once, whatever crashes.",
    epilog=EXITS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Standby = Literal["none", "hot", "warm"]
Names = Annotated[
    list[str], typer.Argument(metavar="FLOW|APP...", help="Full names of flows (app.flow), or names of apps")
]


def _version(show: bool) -> None:
    if show:
        print(f"flowkit {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version of FlowKit", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Reliable messaging: flows that take effect once, whatever crashes."""


@cli.command(epilog=EVERYTHING)
def run(
    app: AppName,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes")] = 1,
    flows: Annotated[str, typer.Option(help="Run only these flows; names separated by commas")] = "",
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Stop when no message is pending")] = False,
    grace: Annotated[str, typer.Option(help="Longest time for workers to finish when the instance stops")] = "30s",
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Serve the routes of APP at this address")] = "",
    admin: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="With --http: address for operators, or none; default: 127.0.0.1, port + 1000",
        ),
    ] = "",
    agent: Annotated[str, typer.Option(metavar="HOST:PORT", help="Answer HAProxy's agent checks at this address")] = "",
    drain: Annotated[str, typer.Option(help="With --http: time to report not ready before stopping")] = "2s",
    standby: Annotated[Standby, typer.Option(help="Stand by: hot (loaded) or warm (one small process)")] = "none",
    group: Annotated[
        str, typer.Option(help="Name of the group: its instances are active, or on standby, together")
    ] = "",
    site: Annotated[str, typer.Option(help="Label that says where the instance is, for flowkit status")] = "",
    app_version: Annotated[
        str, typer.Option("--version", help="Version of APP; a new version waits for its rollout")
    ] = "",
) -> None:
    """Run the flows of APP: a supervisor and its workers."""
    from flowkit.cli.run import run
    from flowkit.host.options import Options

    chosen = [one.strip() for one in flows.split(",") if one.strip()]
    options = Options(workers, chosen, until_idle, grace, http, admin, agent, drain, standby, group, site, app_version)
    raise typer.Exit(run(app, options))


@cli.command(epilog=SERVICES)
def check(app: AppName) -> None:
    """Find mistakes in APP and its configuration.

    Handlers that keep data in memory or in local files cause warnings. End a line with "# flowkit: stateless" to accept
    what it does.
    """
    from flowkit.cli.describe import check

    check(app)


@cli.command(epilog="Environment: FLOWKIT_LEASE. It uses no database or broker of the settings.")
def prove(
    app: AppName,
    scenario: Annotated[str, typer.Argument(help="Function of APP's module, or tests.py:function")],
    directory: Annotated[
        Path | None, typer.Option(help="Folder whose files are compared too; each run empties it", file_okay=False)
    ] = None,
    observe: Annotated[
        str | None, typer.Option(help="Function that returns other effects, to compare them too")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Maximum number of points at which a worker is killed")] = 1000,
    as_json: Json = False,
) -> None:
    """Kill a worker of APP at each point of a scenario; compare.

    The function scenario(harness) publishes the messages. Each run has its own SQLite database. Exit code 1 if a crash
    changes the final state; the output names the effect that escaped its transaction. Exit code 2 if the scenario
    fails, or its final state varies without a crash.
    """
    from flowkit.cli.prove import prove

    raise typer.Exit(prove(app, scenario, directory, observe, points, as_json))


@cli.command(epilog=SERVICES)
def describe(app: AppName, as_json: Json = False) -> None:
    """Show the flows and channels of APP."""
    from flowkit.cli.describe import describe

    describe(app, as_json)


@cli.command(epilog=SERVICES)
def send(
    app: AppName,
    channel: Annotated[str, typer.Argument(help="Name of the channel")],
    body: Annotated[
        str,
        typer.Argument(
            metavar="[JSON|-|@FILE.jsonl]", help="Body as JSON; - reads standard input, @FILE one body a line"
        ),
    ] = "-",
    key: Annotated[str | None, typer.Option(help="Key of the message")] = None,
    id: Annotated[str | None, typer.Option(help="Id of the message; the same id is accepted once")] = None,
    delay: Annotated[str, typer.Option(help="Time after which the message is delivered")] = "0s",
) -> None:
    """Publish one message, or one for each line of a file."""
    from flowkit.cli.send import send

    send(app, channel, body, key, id, delay)


@cli.command(epilog=SERVICES)
def status(as_json: Json = False) -> None:
    """Show workers, pending messages of flows, and their ledgers."""
    from flowkit.cli.status import status

    status(as_json)


@cli.command(epilog=STORE)
def pause(names: Names) -> None:
    """Pause flows, or all flows of an app, in the whole fleet.

    The flows begin no more messages. Messages in flight are finished. New messages are accepted, and wait. The command
    returns when all workers know.
    """
    from flowkit.cli.direct import pause

    pause(names)


@cli.command(epilog=STORE)
def drain(
    names: Names, wait: Annotated[str, typer.Option(help="Longest time to wait until no message is pending")] = "10m"
) -> None:
    """Stop accepting requests for apps or flows, and empty them.

    Routes answer 503, and a drained app is not ready. The command waits until no message is pending, for --wait at
    most. Exit code 1 if messages are left.
    """
    from flowkit.cli.direct import drain

    raise typer.Exit(drain(names, wait))


@cli.command(epilog=STORE)
def scale(
    name: Annotated[str, typer.Argument(metavar="FLOW|APP", help="Full name of a flow (app.flow), or name of an app")],
    many: Annotated[int, typer.Argument(min=1, max=256, help="Number of workers or lanes")],
) -> None:
    """Set the number of workers of an app, or lanes of a flow.

    For an app: the number of worker processes of each instance. For a flow: the number of its lanes in each worker. The
    fleet follows within seconds. To change lanes, instances replace their workers one by one.
    """
    from flowkit.cli.direct import scale

    scale(name, many)


@cli.command(epilog=STORE)
def resume(names: Names) -> None:
    """End pause, drain and scale: use what the app defines."""
    from flowkit.cli.direct import resume

    resume(names)


@cli.command(epilog=SERVICES)
def audit(as_json: Json = False) -> None:
    """Check that no message was lost or counted twice.

    For each flow: accepted = applied + dead + discarded + expired + pending. Exit code 1
    if a flow's figures differ.
    """
    from flowkit.cli.status import audit

    raise typer.Exit(audit(as_json))
