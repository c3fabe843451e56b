"""The PostgreSQL servers of a URL: which may be used, and what they refuse."""

import importlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakSet

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DisconnectionError

from flowkit.errors import ConfigError
from flowkit.fork import making, part_with
from flowkit.url import is_loopback, mask

TRANSACTION = "transaction"
_REFUSED = {"42501", "42883", "0A000"}
"""Insufficient privilege, unknown function, not supported: the answers of hardened, hosted and related servers."""
_log = logging.getLogger("flowkit.store")


def places(url: str) -> tuple[URL, URL | None]:
    """Return the URL for transactions, and the URL for a listening session. The second is None behind a pooler that
    keeps no sessions, unless direct= names the server.

    Raises ConfigError, which names the wrong parameter.
    """
    made = make_url(url).set(drivername="postgresql+psycopg")
    pooler, direct = made.query.get("pooler"), made.query.get("direct")
    driver = made.difference_update_query(["pooler", "direct"])
    if pooler is None and direct is None:
        return driver, driver
    if pooler != TRANSACTION:
        raise ConfigError(
            f"FLOWKIT_DATABASE_URL is {mask(url)} with pooler={pooler}, direct={direct}; write pooler=transaction for "
            "a pooler that lends a session for each transaction, and also direct=host:port for the server itself, if "
            "that can be reached; leave out both if the pooler keeps sessions"
        )
    return driver, driver.set(host=None, port=None).update_query_dict({"host": direct}) if direct else None


class Refusals:
    """Functions that a server refuses to this role, or does not have. Thread-safe."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def excuse(self, error: BaseException | None, lost: str) -> bool:
        """Whether an error is such a refusal. Logs once, as a warning, what is `lost` without the function."""
        if getattr(error, "sqlstate", None) not in _REFUSED:
            return False
        if lost not in self._told:
            self._told.add(lost)
            said = str(error).split("\n", 1)[0]
            _log.warning("PostgreSQL: %s: %s; GRANT EXECUTE ON FUNCTION … TO this role", said, lost)
        return True


class Servers:
    """Connects to the servers of a URL, and refuses a replaced primary. Thread-safe."""

    def __init__(self, url: URL, refusals: Refusals, pooled: bool) -> None:
        """`pooled`: transactions on the same connection may reach different servers."""
        self._url = url
        self._refusals = refusals
        self._pooled = pooled
        self._timelines: dict[int, int] = {}
        """System identifier -> its highest timeline so far. A server with a lower one is a replaced primary."""
        self._lock = threading.Lock()
        self.exposed: set[str] = set()
        """Servers beyond loopback to which a connection was not encrypted."""
        self._connections: WeakSet[Any] = WeakSet()
        part_with(self, Servers._sockets)

    def _sockets(self) -> Iterator[int]:
        """A forked child must not keep these: the server would take a dead worker for alive, and hold its locks."""
        return (one.pgconn.socket for one in self._connections if not one.closed)

    def connect(self, dialect: Any, record: Any, names: Sequence[Any], settings: dict[str, Any]) -> Any:
        """Connect to the first host that is no replaced primary. SQLAlchemy calls this. Blocks; raises ConfigError or
        the driver's errors."""
        from flowkit.store.postgresql.connection import Connection  # needs the driver; open_store reports its absence

        hosts, ports = (str(settings.get(name, "")).split(",") for name in ("host", "port"))
        for _ in hosts:
            several = {"host": ",".join(hosts), "port": ",".join(ports)} if len(hosts) > 1 else {}
            with making:
                connection = Connection.connect(*names, **settings | several, autocommit=True)
                self._connections.add(connection)
            info = connection.info
            if not connection.pgconn.ssl_in_use and not is_loopback(info.hostaddr or info.host):
                self.exposed.add(f"{info.host}:{info.port}")
            encoding = connection.info.parameter_status("server_encoding")
            if encoding not in (None, "UTF8"):
                connection.close()
                raise ConfigError(
                    f"FLOWKIT_DATABASE_URL is {mask(str(self._url))}, whose encoding {encoding} cannot hold every "
                    "text; use a database created by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
                )
            self._introduce(connection, "")
            refused = self._replaced(connection)
            if not refused:
                return connection
            connection.close()
            hosts, ports = hosts[1:] + hosts[:1], ports[1:] + ports[:1]
        raise importlib.import_module("psycopg").OperationalError(refused)

    def begin(self, connection: Any, statement: str) -> None:
        """Begin a transaction by this statement. If the server is a replaced primary, this closes the connection, and
        raises psycopg.OperationalError."""
        if self._pooled and connection.system:
            self._introduce(connection, statement)
        if not (self._pooled and connection.system):
            connection.execute(statement, prepare=False)
            return
        refused = self._replaced(connection)
        if refused:
            connection.close()
            raise importlib.import_module("psycopg").OperationalError(refused)

    def check(self, connection: Any, record: Any, proxy: Any) -> None:
        """Keep the pool from lending a connection to a replaced primary, or one that the server has ended. SQLAlchemy
        calls this."""
        if connection.timeline < self._timelines.get(connection.system, 0):
            raise DisconnectionError("the server was replaced by another")
        if connection.ended():
            raise DisconnectionError("the server ended the session while it was idle")

    def _introduce(self, connection: Any, before: str) -> None:
        """Execute the statements `before`, and read the server's identity. If the server refuses that, the identity
        stays unknown, and the statements are undone."""
        try:
            connection.introduce(before)
        except Exception as error:
            lost = "an old primary that comes back after a failover cannot be recognised"
            if not self._refusals.excuse(error, lost):
                raise
            connection.system = connection.timeline = 0
            connection.rollback()

    def _replaced(self, connection: Any) -> str:
        """Return why the server of a connection must not be used; empty if it has the highest timeline so far."""
        with self._lock:
            highest = self._timelines.get(connection.system, 0)
            if connection.timeline >= highest:
                self._timelines[connection.system] = connection.timeline
                return ""
        why = (
            f"is an old primary, of timeline {connection.timeline} where {highest} was seen: what it accepts is "
            "lost; stop it, or make it follow the new one"
        )
        return f"{connection.info.host}:{connection.info.port} {why if connection.timeline else 'is a standby'}"
