"""The place of a store: which database it lives in. A copy of that database is another place."""

import logging

from flowkit.errors import ConfigError
from flowkit.store.database import Database
from flowkit.store.dialect import UNKNOWN
from flowkit.store.keyring import Keyring
from flowkit.store.ledger import Ledger
from flowkit.store.tables import new_key

FRESH_SECONDS = 5.0
"""A worker whose heartbeat is not older is alive."""
_log = logging.getLogger("flowkit.store")


class Place:
    """Compares where a store is with where it was. Every call blocks; any thread may call it.

    A broker's queues are named by the store's id, which a copy of the database shares: workers of both would each apply
    a part of the messages.
    """

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring) -> None:
        self._database = database
        self._ledger = ledger
        self._keyring = keyring

    def check(self) -> None:
        """Note where the store is, if nobody has; raise ConfigError where that is another database now."""
        here = self._here()
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.first_place, [(here,)] if here else [])
        with self._database.unit("") as unit:
            noted = unit.read(self._database.sql.place)
        was = str(noted[0][0]) if noted else here
        if here.startswith(UNKNOWN):
            _log.info(
                "the server does not tell its system identifier; a copy on another server is not recognised by it"
            )
        if not _same(here, was):
            raise ConfigError(
                f"FLOWKIT_DATABASE_URL names a copy: store {self._database.identity()} was in database {was}, and this "
                f"is {here} (system identifier/oid); with a broker, workers of both would each apply a part of the "
                "messages; if the other database is given up, run: flowkit db adopt; if both go on, run here: "
                "flowkit db adopt --apart"
            )

    def adopt(self, apart: bool = False) -> str:
        """Let this database be the store's; with `apart`, a store of its own, with keys of its own. Returns the store's
        id.

        Raises ConfigError while workers of it are alive: they would go on with the queues of the id before.
        """
        alive = [one.id for one in self._ledger.workers() if one.silent < FRESH_SECONDS]
        if apart and alive:
            raise ConfigError(f"{len(alive)} worker(s) of this database are alive; stop them, and run this again")
        here = self._here()
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.move, [(here,)] if here else [])
            new = [(self._database.ids(), "store"), (new_key(), "key")]
            unit.write(self._database.sql.rename, new if apart else [])
            if apart:
                self._keyring.renew(unit)
        return self._database.identity()

    def _here(self) -> str:
        """The database that this is; empty where nothing tells a copy from a file that was moved."""
        try:
            with self._database.dialect.engine.connect() as connection:
                return self._database.dialect.place(connection.connection.driver_connection)
        except Exception as error:
            raise self._database.classify(error) from error


def _same(here: str, was: str) -> bool:
    """Whether two places can be one: what is unknown of one of them is not compared."""
    return all(UNKNOWN in pair or pair[0] == pair[1] for pair in zip(here.split("/"), was.split("/"), strict=True))
