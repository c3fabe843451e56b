"""Dead letters: messages that ended unapplied, kept with their reason until somebody decides."""

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.message import UNREAD, Message
from flowkit.ports import Copy, Reopening, Tally
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND, names, read_message
from flowkit.store.unit import SqlUnit


class DeadLetter(NamedTuple):
    """A message that is dead, and why. `died` is in seconds since the epoch."""

    letter: str
    flow: str
    message: Message
    generation: int
    attempts: int
    died: float
    reason: str
    error: str
    stack: str


class DeadLetters:
    """The dead letters of a store. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def select(self, flow: str | None = None, error: str | None = None, limit: int = 1_000_000) -> list[str]:
        """The ids of the letters of a flow, or of an error that contains a text; the oldest first."""
        with self._database.unit("") as unit:
            return [letter for (letter,) in unit.read(self._database.sql.select_dead, (flow, error, limit))]

    def of_version(self, app: str, version: str) -> list[str]:
        """The ids of the letters that a version of an app made since its rollout began, but for what was refused: that
        is the fault of no version."""
        flows = f"{app}."
        with self._database.unit("") as unit:
            return [letter for (letter,) in unit.read(self._database.sql.dead_of_version, (version, flows, flows, app))]

    def groups(self, flow: str | None, error: str | None, limit: int) -> list[tuple[str, str, str, int]]:
        """Flow, reason, error, and how many letters have them, the most frequent first; chosen as by `select`."""
        with self._database.unit("") as unit:
            return [tuple(row) for row in unit.read(self._database.sql.group_dead, (flow, error, limit))]

    def read(self, letters: Sequence[str], whole: bool = True) -> list[DeadLetter]:
        """These letters, with everything that is known of them. Unless `whole`, body and stack are empty: they are
        what takes memory."""
        sql = self._database.sql
        with self._database.unit("") as unit:
            return [
                DeadLetter(
                    letter,
                    flow,
                    read_message(rest[:10]),
                    generation,
                    attempts,
                    died / MICROSECOND,
                    reason,
                    error,
                    stack,
                )
                for letter, flow, *rest, generation, attempts, died, reason, error, stack in unit.read(
                    sql.read_dead if whole else sql.list_dead, (names(letters),)
                )
            ]

    def retry(self, letters: Sequence[str]) -> int:
        """Send these again, with the next generation and no attempts. Returns how many were still dead.

        Each takes effect at most once, however often it is retried: its inbox row expects that generation. A message of
        another program that nobody could read arrives as it did first: it leaves the ledger and the inbox, and the
        flow looks for its id anew.
        """
        with self._database.transaction() as unit:
            rows = self._exhume(unit, letters)
            tallies: dict[str, Tally] = {}
            reopened, forgotten, copies = [], [], []
            for _, flow, message, generation, _ in rows:
                identity, tally = (flow, message.source, message.id), tallies.get(flow, Tally())
                tallies[flow] = tally = tally._replace(dead=tally.dead - 1)
                if message.source == UNREAD:
                    forgotten.append(identity)
                    tallies[flow] = tally._replace(accepted=tally.accepted - 1)
                    copies.append(Copy(self._database.ids(), message, flow))
                else:
                    reopened.append(Reopening(identity, generation + 1, 0))
                    copies.append(Copy(self._database.ids(), message, flow, generation + 1))
            unit.write(self._database.sql.forget, forgotten)
            unit.reopen(reopened)
            unit.stage(copies)
            unit.count(tallies)
        self._database.notify({flow for _, flow, *_ in rows})
        return len(rows)

    def discard(self, letters: Sequence[str]) -> int:
        """Give these up for good. Returns how many were still dead."""
        with self._database.transaction() as unit:
            rows = self._exhume(unit, letters)
            tallies: dict[str, Tally] = {}
            for _, flow, *_ in rows:
                tally = tallies.get(flow, Tally())
                tallies[flow] = tally._replace(dead=tally.dead - 1, discarded=tally.discarded + 1)
            unit.write(
                self._database.sql.conclude, [(flow, message.source, message.id) for _, flow, message, *_ in rows]
            )
            unit.count(tallies)
        return len(rows)

    def _exhume(self, unit: SqlUnit, letters: Sequence[str]) -> list[tuple[str, str, Message, int, int]]:
        unit.begin()
        rows = unit.read(self._database.sql.exhume, (names(letters),))
        return [(row[0], row[1], read_message(row[2:12]), row[12], row[13]) for row in rows]
