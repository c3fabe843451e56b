"""Commands of the schema of the store."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, group

commands = group("Check or upgrade the schema of the store.")


@commands.command(name="upgrade", epilog=STORE)
def db_upgrade() -> None:
    """Upgrade the schema of the store to this version of FlowKit."""
    from flowkit.cli.schema import upgrade

    upgrade()


@commands.command(name="check", epilog=STORE)
def db_check() -> None:
    """Check whether the schema is of this version of FlowKit.

    Exit code 1 if it is not.
    """
    from flowkit.cli.schema import check

    raise typer.Exit(check())


@commands.command(name="adopt", epilog=STORE)
def db_adopt(
    apart: Annotated[bool, typer.Option("--apart", help="Keep both: this copy becomes a store of its own")] = False,
) -> None:
    """Let a copy of a store's database take its place.

    With a broker, workers refuse a database that the store has not been in before, for example after a dump was
    restored elsewhere or after pg_upgrade. With --apart, the copy gets an id and queues of its own; stop its workers
    first.
    """
    from flowkit.cli.schema import adopt

    adopt(apart)
