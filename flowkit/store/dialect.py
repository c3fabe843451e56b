"""The port through which the store uses a database."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from flowkit.store.encoding import Row
from flowkit.store.statements import Statements

UNKNOWN = "unknown"
"""Stands for a part of the database's place that the server does not report."""
SWALLOWED = (
    "a database error was caught inside the handler, but it had failed the transaction; let the error pass, or guard "
    "the statement with `with db.begin_nested():`"
)


class Dialect(Protocol):
    """The differences between databases. `connection` is always a connection of the driver."""

    name: str
    serial: bool
    engine: Engine
    statements: Statements
    error: type[Exception]
    """The base class of the driver's errors."""
    private: bool
    """Whether each connection has a server session of its own, whose state ends with it."""

    def begin(self, connection: Any, deadline: float) -> None:
        """Begin a transaction. The server ends it some seconds after `deadline` seconds."""

    def broken(self, connection: Any) -> BaseException | None:
        """Return why the transaction cannot continue, or None. A local check: does not block."""

    def lost(self, connection: Any) -> bool:
        """Whether the connection is lost or closed."""

    def shut(self, connection: Any) -> bool:
        """Whether this process itself has closed the connection."""

    def denied(self, connection: Any, error: BaseException) -> bool:
        """Whether this error of a commit proves that it did not happen, because the database itself refused it."""

    def discard(self, connection: Any) -> None:
        """Close a connection for good. Never waits for a server that may be down."""

    def restore(self, connection: Any, deadline: float) -> None:
        """Restore the settings and the role of an open transaction to those of `begin`."""

    def cleanse(self, connection: Any, exposed: bool) -> bool:
        """Remove what handlers left on a connection, outside of a transaction. Returns False if it must be discarded.
        `exposed`: a handler had access to the driver's connection."""

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        """Return the StoreConflict or StoreUnavailable that an error means, or else the error itself.

        `own`: a statement of FlowKit's own failed. Then more errors mean StoreUnavailable: a handler's would be its own
        failure.
        """

    def barred(self, error: BaseException) -> bool:
        """Whether a setting that a handler can change for its transaction may have caused this error: a role, a path, a
        mode."""

    def place(self, connection: Any) -> str:
        """Return what identifies this database, as parts with slashes between; empty if a copy looks the same."""

    def adopt(self, connection: Any) -> None:
        """Prepare a connection of the program's own, and open a transaction on it, even in autocommit mode."""

    def pipelined(self, connection: Any) -> AbstractContextManager[object]:
        """Send statements without waiting for each result, if the driver can. Errors come at the end of the block."""

    def plain(self, statement: str) -> bool:
        """Whether a handler's statement has no result, and sending it later, together with others, saves time."""

    def execute(self, cursor: Any, statement: str, rows: Sequence[Row]) -> None:
        """Execute a statement once for each row of parameters. There is at least one row."""

    def staging(self, rows: list[tuple[Any, ...]]) -> list[tuple[str, list[Row]]]:
        """Return the statements that write these message rows, each with its rows of parameters."""

    def fence(self, cursor: Any, key: tuple[str, str, int]) -> None:
        """Check that a group is active, and keep it so until the transaction ends. `key`: name, holder and token of its
        lease. Raises an error that `classify` turns into Fenced; in a pipeline, when the pipeline ends."""

    def commit(self, connection: Any, token: str | None) -> None:
        """Commit if the savepoint `token` still exists, or if `token` is None. Raises otherwise, without a commit."""

    def doubtful(self, connection: Any) -> bool:
        """Whether a commit on this connection succeeded, but may be lost by a failover."""

    def token_gone(self, error: BaseException) -> bool:
        """Whether a statement failed because a savepoint is missing."""

    def monotonic(self) -> float:
        """Return seconds of a clock that nobody can set, to compare with the database's clock."""

    def wait(self, seconds: float) -> set[str] | None:
        """Block until another connection may have committed, at most `seconds`. Returns the flows that a notification
        names; None if they are unknown."""

    def notify(self, flows: Collection[str]) -> None:
        """Wake the processes that wait for these flows."""

    def hold(self, worker: str) -> bool:
        """Hold the lock of a worker until this process dies. Returns whether others can rely on it."""

    def gone(self, worker: str) -> bool:
        """Whether the lock of a worker is free."""

    def forget(self, worker: str) -> None:
        """Release the lock of a worker."""

    def upgrading(self) -> AbstractContextManager[Connection]:
        """Open a connection with a transaction, while no other process upgrades the schema. Raises ConfigError, which
        names the missing rights, or StoreUnavailable."""

    def check_place(self) -> None:
        """Raise StoreLost if the opened database was removed or replaced."""

    def doubts(self) -> list[str]:
        """Return warnings about the connection to the database. Blocks; raises the driver's errors."""

    def audit(self) -> list[str]:
        """Return remarks on the database rights of this program. Blocks; raises the driver's errors."""

    def tidy(self) -> None:
        """Do regular maintenance of the database."""

    def close(self) -> None:
        """Release every connection."""


def classify(dialect: Dialect, error: BaseException, own: bool = False) -> BaseException:
    """Return the meaning of an error that SQLAlchemy may have wrapped; see `Dialect.classify`."""
    inner = getattr(error, "orig", None) or error
    cause = dialect.classify(inner, own)
    return error if cause is inner else cause
