"""Commands of the schema of the store."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import STORE, group

commands = group("The schema of the store.")


@commands.command(name="upgrade", epilog=STORE)
def db_upgrade() -> None:
    """Bring the schema of the store to this version."""
    from flowkit.cli.schema import upgrade

    upgrade()


@commands.command(name="check", epilog=STORE)
def db_check() -> None:
    """Say whether the schema is of this version.

    Exit code 1 when it is not.
    """
    from flowkit.cli.schema import check

    raise typer.Exit(check())


@commands.command(name="adopt", epilog=STORE)
def db_adopt(
    apart: Annotated[
        bool, typer.Option("--apart", help="Both go on: this copy gets an id, and queues, of its own")
    ] = False,
) -> None:
    """Let a copy of a store's database take its place.

    After a dump was restored elsewhere, or pg_upgrade: with a broker, workers refuse a database that the store was not
    in before. With --apart the copy is a store of its own; its workers have to be stopped.
    """
    from flowkit.cli.schema import adopt

    adopt(apart)
