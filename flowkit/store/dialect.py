"""The seam between the store and its databases."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from flowkit.store.encoding import Row
from flowkit.store.statements import Statements

UNKNOWN = "unknown"
"""Stands for a part of the database's place that the server does not tell."""
SWALLOWED = (
    "a database error was caught inside the handler, but it had failed the transaction; let the error pass, or guard "
    "the statement with `with db.begin_nested():`"
)


class Dialect(Protocol):
    """The differences between databases. `connection` is always the driver's own."""

    name: str
    serial: bool
    engine: Engine
    statements: Statements
    error: type[Exception]
    """The driver's errors."""
    private: bool
    """Whether what is left on a connection ends with it, because nobody shares its session at the server."""

    def begin(self, connection: Any, deadline: float) -> None:
        """Begin a transaction that the server ends some seconds after `deadline`."""

    def broken(self, connection: Any) -> BaseException | None:
        """Why the transaction cannot go on, by a local look."""

    def lost(self, connection: Any) -> bool:
        """Whether the connection is gone."""

    def shut(self, connection: Any) -> bool:
        """Whether this process itself has closed the connection."""

    def denied(self, connection: Any, error: BaseException) -> bool:
        """Whether a commit that failed like this did not happen: the database itself said so."""

    def discard(self, connection: Any) -> None:
        """Close a connection that is not used again. Never waits for a server that may be gone."""

    def restore(self, connection: Any, deadline: float) -> None:
        """Put back the settings and the role of an open transaction; those of `begin` hold again."""

    def cleanse(self, connection: Any, exposed: bool) -> bool:
        """Remove what handlers left on a connection, outside of a transaction. False when it has to be discarded.
        `exposed`: a handler had the driver's connection in hand."""

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        """The StoreConflict or StoreUnavailable that an error means; else the error. Of a statement of FlowKit's `own`
        that is also what would be a handler's failure."""

    def barred(self, error: BaseException) -> bool:
        """Whether a statement failed for what a handler can have set for its transaction: a role, a path, a mode."""

    def place(self, connection: Any) -> str:
        """Which database this is, as parts with a slash between; empty where a copy cannot be told from it."""

    def adopt(self, connection: Any) -> None:
        """Prepare a connection that somebody else opened: a transaction is open on it, also if it is in autocommit."""

    def pipelined(self, connection: Any) -> AbstractContextManager[object]:
        """Send statements without waiting for each one's result, where the driver can. Errors come at its end."""

    def plain(self, statement: str) -> bool:
        """Whether a statement of a handler gains by waiting for others like it, and is seen to have no result."""

    def execute(self, cursor: Any, statement: str, rows: Sequence[Row]) -> None:
        """Execute a statement once for each row of parameters, of which there is one at least."""

    def staging(self, rows: list[tuple[Any, ...]]) -> list[tuple[str, list[Row]]]:
        """What writes these message rows: statements, each with its rows of parameters."""

    def fence(self, cursor: Any, key: tuple[str, str, int]) -> None:
        """See that a group is active, and stays so until this transaction's end. What fails is Fenced when classified;
        in a pipeline it comes at its end."""

    def commit(self, connection: Any, token: str | None) -> None:
        """Commit, if the savepoint `token` is still there. Refuses, and does not commit, when it is gone."""

    def doubtful(self, connection: Any) -> bool:
        """Whether a commit succeeded here, but may be gone after a failover."""

    def token_gone(self, error: BaseException) -> bool:
        """Whether a commit was refused because the savepoint is gone."""

    def monotonic(self) -> float:
        """Seconds by a clock that nobody can set, to compare the database's clock with."""

    def wait(self, seconds: float) -> set[str] | None:
        """Block until another connection may have committed, at most so long. The flows told; None: unknown."""

    def notify(self, flows: Collection[str]) -> None:
        """Wake those who wait for these flows."""

    def hold(self, worker: str) -> bool:
        """Hold a lock until this process dies; whether others can rely on it."""

    def gone(self, worker: str) -> bool:
        """Whether that lock is free."""

    def forget(self, worker: str) -> None:
        """Release that lock."""

    def upgrading(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction beside which nobody else upgrades the schema. Raises ConfigError, which names
        what is missing, or StoreUnavailable."""

    def check_place(self) -> None:
        """Raise StoreLost where the database that was opened has been taken away."""

    def doubts(self) -> list[str]:
        """Warnings of how the database is reached. Blocks; raises what a connection raises."""

    def audit(self) -> list[str]:
        """Remarks on the rights with which the database is reached. Blocks; raises what a connection raises."""

    def tidy(self) -> None:
        """Regular upkeep of the database."""

    def close(self) -> None:
        """Release every connection."""


def classify(dialect: Dialect, error: BaseException, own: bool = False) -> BaseException:
    """The meaning of an error that SQLAlchemy may have wrapped; see `Dialect.classify`."""
    inner = getattr(error, "orig", None) or error
    cause = dialect.classify(inner, own)
    return error if cause is inner else cause
