"""Commands of the schema of the store."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, group

commands = group("Upgrade, check or adopt the database of the store.")


@commands.command(name="upgrade", epilog=STORE)
def db_upgrade() -> None:
    """Upgrade the schema of the store to this version of FlowKit."""
    from flowkit.cli.schema import upgrade

    upgrade()


@commands.command(name="check", epilog=STORE)
def db_check() -> None:
    """Check whether the schema is that of this version of FlowKit.

    Exit code 1 if it is not.
    """
    from flowkit.cli.schema import check

    raise typer.Exit(check())


@commands.command(name="adopt", epilog=STORE)
def db_adopt(
    apart: Annotated[
        bool, typer.Option("--apart", help="Keep both databases in use: this copy gets its own id and queues")
    ] = False,
) -> None:
    """Let a copy of a store's database take its place.

    Run this after pg_upgrade, or after you restored a dump elsewhere: with a broker, workers refuse a database in which
    the store was not before. With --apart the copy becomes a store of its own; stop its workers first.
    """
    from flowkit.cli.schema import adopt

    adopt(apart)
