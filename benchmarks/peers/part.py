"""The part of a contender's process: it fills the queue, works, or checks the results.

A contender is a module that passes its functions to `play`. The contest runs it with a brief in its environment.
"""

import os
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pika import BlockingConnection, URLParameters
from psycopg import Connection
from pydantic import BaseModel

from benchmarks.contender import DEADLINE_SECONDS, Lost, Place
from benchmarks.work import Order, Style

Work = Literal["no-op", "reliable"]
VARIABLE = "FLOWKIT_BENCH"
AFTER = "after"
"""The queue of what goes onward, where it is a queue of a broker."""
RECORD = struct.Struct("d")
POLL_SECONDS = 0.05
TABLES = (
    "CREATE TABLE peer_inbox (id text PRIMARY KEY)",
    "CREATE TABLE peer_outbox (id text PRIMARY KEY, body text NOT NULL)",
    "CREATE TABLE bench_rows (id bigint PRIMARY KEY, total double precision NOT NULL)",
)
RECEIVE = "INSERT INTO peer_inbox (id) VALUES (?) ON CONFLICT DO NOTHING"
INSERT = "INSERT INTO bench_rows (id, total) VALUES (?, ?)"
STORE = "INSERT INTO peer_outbox (id, body) VALUES (?, ?)"
SENT = "DELETE FROM peer_outbox WHERE id = ?"


class Brief(BaseModel):
    """The orders to a contender's process."""

    database: str
    broker: str
    tally: Path
    work: Work
    style: Style
    shape: str
    """How many threads or processes, or what else the contender can be set to."""
    quorum: bool
    """Whether its queues at the broker are quorum queues."""

    @classmethod
    def read(cls) -> "Brief":
        return cls.model_validate_json(os.environ[VARIABLE])

    @property
    def place(self) -> Place:
        return Place(self.database, self.broker)


class Tally:
    """A file that gets one record for each message whose work is done: seconds from when it was meant to be sent until
    its effects were committed, or 0.

    Any thread of any process may add to it: an append of a few bytes is one system call, and is not torn.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, at: float = 0.0, committed: float = 0.0) -> None:
        os.write(self._file, RECORD.pack(committed - at if at else 0.0))

    def count(self) -> int:
        return self._path.stat().st_size // RECORD.size

    def seconds(self) -> list[float]:
        return [seconds for (seconds,) in RECORD.iter_unpack(self._path.read_bytes())]


class Books(threading.local):
    """Inbox, business rows and outbox, by hand on one connection of each thread: straight to the driver, which prepares
    each statement once. On SQLite with a write-ahead log and synchronous=FULL, as FlowKit's store."""

    def __init__(self, brief: Brief, enlist: Callable[[Any, str], object] | None = None) -> None:
        """`enlist` sends a body onward by the connection, in its transaction, in place of a row of the outbox."""
        self._style = brief.style
        self._enlist = enlist
        self._connection: Any
        self._execute: Callable[..., Any]
        if brief.database.startswith("sqlite"):
            lite = sqlite3.connect(brief.database.removeprefix("sqlite:///"), isolation_level=None, timeout=60)
            lite.execute("PRAGMA journal_mode = WAL")
            lite.execute("PRAGMA synchronous = FULL")
            self._connection, self._execute, self._begin = lite, lite.execute, "BEGIN IMMEDIATE"
        else:
            self._connection = Connection.connect(brief.database, autocommit=True, prepare_threshold=0)
            cursor = self._connection.cursor()
            self._execute = lambda statement, values=(): cursor.execute(statement.replace("?", "%s"), values)
            self._begin = "BEGIN"

    def make(self) -> None:
        for table in TABLES:
            self._execute(table)

    def enter(self, order: Order, body: str) -> bool:
        """All that is kept of a message, in one transaction. Whether it is new."""
        self._execute(self._begin)
        new = bool(self._execute(RECEIVE, (str(order.id),)).rowcount)
        if new:
            if self._style != "none":
                self._execute(INSERT, (order.id, order.total))
            if self._enlist:
                self._enlist(self._connection, body)
            else:
                self._execute(STORE, (str(order.id), body))
        self._execute("COMMIT")
        return new

    def sent(self, order: Order) -> None:
        self._execute(SENT, (str(order.id),))

    def counts(self) -> tuple[int, int, int]:
        """Rows of the inbox, business rows, rows of the outbox."""
        inbox, rows, outbox = (
            int(self._execute(f"SELECT count(*) FROM {table}").fetchone()[0])
            for table in ("peer_inbox", "bench_rows", "peer_outbox")
        )
        return inbox, rows, outbox


class Handler:
    """What a handler of a peer does with a body."""

    def __init__(
        self,
        brief: Brief,
        onward: Callable[[str], object] | None = None,
        enlist: Callable[[Any, str], object] | None = None,
    ) -> None:
        """`onward` returns once its message is safe with the queue; `enlist` sends it in the books' transaction."""
        self._tally = Tally(brief.tally)
        self._onward = onward
        self._books = Books(brief, enlist) if brief.work == "reliable" else None

    def __call__(self, body: str) -> None:
        if self._books is None:
            self._tally.add()
            return
        order = Order.model_validate_json(body)
        new = self._books.enter(order, body)
        committed = time.time()
        if new and self._onward:
            self._onward(body)
            self._books.sent(order)
        self._tally.add(order.at, committed)


def play(
    fill: Callable[[Iterator[str]], None],
    work: Callable[[], None],
    check: Callable[[int], str] | None = None,
) -> None:
    """Do what the command line says: `fill FIRST COUNT RATE`, `work`, or `check COUNT`.

    Of orders at a rate each is due at its time, whatever became of those before; at rate 0 all are due at once.
    """
    match sys.argv[1:]:
        case ["fill", first, count, rate]:
            fill(bodies(int(first), int(count), float(rate)))
        case ["work"]:
            work()
        case ["check", count]:
            settle(lambda: (check or checked)(int(count)))


def bodies(first: int, count: int, rate: float) -> Iterator[str]:
    """Orders as JSON, each when it is due, with ids from the first one on."""
    begin = time.time()
    for number in range(count):
        at = begin + number / rate if rate else 0.0
        time.sleep(max(0.0, at - time.time()) if rate else 0)
        yield Order(id=first + number, at=at).model_dump_json()


def batches(found: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of so many."""
    rest = iter(found)
    while batch := list(islice(rest, size)):
        yield batch


def checked(count: int, after: Callable[[], int] | None = None) -> str:
    """What is wrong with what so many messages left in the books, and sent onward: to the broker, or to where `after`
    counts."""
    brief = Brief.read()
    if brief.work == "no-op":
        return ""
    found, wanted = Books(brief).counts(), (count, 0 if brief.style == "none" else count, 0)
    if found != wanted:
        return f"inbox, business rows and outbox: {found}, not {wanted}"
    if brief.broker:
        with BlockingConnection(URLParameters(brief.broker)) as connection:
            onward = connection.channel().queue_declare(AFTER, passive=True).method.message_count
    else:
        onward = after() if after else count
    return "" if onward == count else f"{onward} went onward, not {count}"


def asked(brief: Brief, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query of SQL to PostgreSQL."""
    with Connection.connect(brief.database) as connection:
        return connection.execute(query.encode()).fetchall()


def settle(problem: Callable[[], str]) -> None:
    """Wait until all is as it must be. Raises Lost if that does not come."""
    end = time.monotonic() + min(DEADLINE_SECONDS, 60)
    while said := problem():
        if time.monotonic() > end:
            raise Lost(said)
        time.sleep(POLL_SECONDS)
