"""Dead letters: messages that ended unapplied, kept with their reason until they are retried, discarded or expired."""

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.message import UNREAD, Message
from flowkit.ports import Copy, Reopening, Tally
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND, names, read_message
from flowkit.store.unit import SqlUnit


class DeadLetter(NamedTuple):
    """A dead message with its reason. `letter` is the id of the dead letter; `died` is in seconds since the epoch."""

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
        """Return the ids of dead letters, the oldest first: of one flow, and with `error` in their error, if given."""
        with self._database.unit("") as unit:
            return [letter for (letter,) in unit.read(self._database.sql.select_dead, (flow, error, limit))]

    def of_version(self, app: str, version: str) -> list[str]:
        """Return the ids of the dead letters of one version since the app's rollout began. Refused messages do not
        count: no version causes them."""
        flows = f"{app}."
        with self._database.unit("") as unit:
            return [letter for (letter,) in unit.read(self._database.sql.dead_of_version, (version, flows, flows, app))]

    def groups(self, flow: str | None, error: str | None, limit: int) -> list[tuple[str, str, str, int]]:
        """Return (flow, reason, error, number of letters), the most frequent first. Filters like `select`."""
        with self._database.unit("") as unit:
            return [tuple(row) for row in unit.read(self._database.sql.group_dead, (flow, error, limit))]

    def read(self, letters: Sequence[str], whole: bool = True) -> list[DeadLetter]:
        """Return these letters, the oldest first. Unless `whole`, body and stack are empty, which saves memory."""
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
        """Send these letters again, with the next generation and no attempts. Returns how many were still dead.

        Each takes effect at most once, however often it is retried: its inbox row expects the new generation. A foreign
        message that could not be read leaves the ledger and the inbox. It arrives as if for the first time, and the
        flow identifies it again.
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
        """Discard these letters for good. Returns how many were still dead."""
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
