"""The place of a store: the database that holds it. A copy of that database is another place."""

import logging

from flowkit.errors import ConfigError
from flowkit.store.database import Database
from flowkit.store.dialect import UNKNOWN
from flowkit.store.keyring import Keyring
from flowkit.store.ledger import Ledger
from flowkit.store.tables import new_key

FRESH_SECONDS = 5.0
"""Age of a heartbeat, in seconds, up to which its worker counts as alive."""
_log = logging.getLogger("flowkit.store")


class Place:
    """Compares the present place of a store with the recorded one. Every call blocks; any thread may call it.

    The names of a broker's queues contain the store's id, which a copy of the database shares: workers of both would
    each apply a part of the messages.
    """

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring) -> None:
        self._database = database
        self._ledger = ledger
        self._keyring = keyring

    def check(self) -> None:
        """Record the place of the store, if there is no record. Raises ConfigError if that names another place."""
        here = self._here()
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.first_place, [(here,)] if here else [])
        with self._database.unit("") as unit:
            noted = unit.read(self._database.sql.place)
        was = str(noted[0][0]) if noted else here
        if here.startswith(UNKNOWN):
            _log.info(
                "the server does not report its system identifier; FlowKit cannot recognise a copy on another server"
            )
        if not _same(here, was):
            raise ConfigError(
                f"FLOWKIT_DATABASE_URL names a copy: store {self._database.identity()} was in database {was}, and this "
                f"is {here} (system identifier/oid); with a broker, workers of both would each apply a part of the "
                "messages; if the other database is given up, run: flowkit db adopt; if both stay in use, run here: "
                "flowkit db adopt --apart"
            )

    def adopt(self, apart: bool = False) -> str:
        """Record this database as the place of the store; with `apart`, make it another store, with a new id and new
        keys. Returns the store's id.

        With `apart`, raises ConfigError while its workers are alive: they would use the queues of the old id.
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
        """Return the present place; empty if nothing tells a copy from a moved file."""
        try:
            with self._database.dialect.engine.connect() as connection:
                return self._database.dialect.place(connection.connection.driver_connection)
        except Exception as error:
            raise self._database.classify(error) from error


def _same(here: str, was: str) -> bool:
    """Whether two places can be the same. Parts that are unknown in either are not compared."""
    return all(UNKNOWN in pair or pair[0] == pair[1] for pair in zip(here.split("/"), was.split("/"), strict=True))
