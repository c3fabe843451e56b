"""The store on a SQL database, assembled from its parts. The dialect holds the differences between databases."""

from collections.abc import Mapping

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from flowkit.message import new_id
from flowkit.ports import Clock, Fence, Ids, Objects
from flowkit.store.answers import Answers
from flowkit.store.database import Database
from flowkit.store.dead_letters import DeadLetters
from flowkit.store.dialect import Dialect
from flowkit.store.directions import Directions
from flowkit.store.fleet import Fleet
from flowkit.store.groups import Groups
from flowkit.store.keyring import Keyring
from flowkit.store.ledger import Ledger
from flowkit.store.place import Place
from flowkit.store.queue import Queue
from flowkit.store.retention import Cleaner
from flowkit.store.rollouts import Rollouts
from flowkit.store.schema import Schema
from flowkit.store.subscribers import Subscribers
from flowkit.store.suspects import Suspects
from flowkit.store.uptime import Uptime


class SqlStore:
    """Implements ports.Store by its parts. Thread-safe; a unit belongs to the thread that opened it."""

    injects: Mapping[type, str] = {
        Session: "an ORM session of the unit of work",
        Connection: "a connection of the unit of work",
        Objects: "a durable key-value store of the app",
    }
    session: type = Session

    def __init__(self, dialect: Dialect, clock: Clock, ids: Ids = new_id) -> None:
        self.dialect = dialect
        self.serial = dialect.serial
        self.database = database = Database(dialect, clock, ids)
        self.schema = Schema(database)
        self.queue = Queue(database)
        self.ledger = Ledger(database)
        self.answers = Answers(database)
        self.directions = Directions(database)
        self.uptime = Uptime(database)
        self.dead_letters = DeadLetters(database)
        self.groups = Groups(database)
        self.rollouts = Rollouts(database)
        self.retention = Cleaner(database)
        self.fleet = Fleet(database)
        self.suspects = Suspects(database, self.fleet)
        self.subscribers = Subscribers(database, self.fleet)
        self.keyring = Keyring(database, self.fleet)
        self.place = Place(database, self.ledger, self.keyring)
        self.unit, self.transaction, self.join = database.unit, database.transaction, database.join
        self.wait, self.notify, self.close = database.wait, database.notify, database.close
        self.now, self.started, self.key = database.now, database.started, database.key
        self.classify, self.check_place = database.classify, database.check_place
        self.identity, self.doubts, self.audit = database.identity, database.doubts, database.audit

    @property
    def fence(self) -> Fence | None:
        return self.database.fence

    @fence.setter
    def fence(self, fence: Fence | None) -> None:
        self.database.fence = fence

    @property
    def version(self) -> str:
        return self.database.version

    @version.setter
    def version(self, version: str) -> None:
        self.database.version = version
