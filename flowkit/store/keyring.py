"""The keys of a store: messages that travel by a broker are signed with them."""

from collections.abc import Sequence
from secrets import token_hex
from typing import Any, NamedTuple

from flowkit import duration
from flowkit.errors import ConfigError
from flowkit.ports import Key, Ring
from flowkit.store.database import Database
from flowkit.store.encoding import MICROSECOND
from flowkit.store.fleet import Fleet
from flowkit.store.tables import RETENTION, SIGNING, first_key, new_key
from flowkit.store.unit import SqlUnit

KNOWN_SECONDS = 60.0
"""A new key signs when it is so old: workers look at the keys twice as often, so that all know it by then."""
HANDOVER_SECONDS = 2 * KNOWN_SECONDS
"""After so long no worker signs with the key before. Its `hold` begins then."""
DRAIN_SECONDS = 14 * 86_400.0
"""Time in seconds for which unsigned messages are taken after the last worker of the version before: the default of
App(retention=), because later ones are dead letters for their age. An app with a longer retention makes it longer."""
AGAIN_SECONDS = 3600.0
"""Seconds between two notes that such a worker is there."""


class KeyState(NamedTuple):
    """A key, for people. Times are in seconds: since it was made, and until it verifies no more; None: for good; since
    the next key was made."""

    id: str
    age: float
    left: float | None
    signs: bool
    idle: float = 0.0


class Keyring:
    """Reads and changes the keys. Every call blocks; any thread may call it. Its callers show no secret."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet

    def read(self) -> Ring:
        """The keys, for a process that uses a broker. From then on older code is refused where signatures are required.

        Raises ConfigError where there are no keys.
        """
        rows, lenient = self._rows(), self._is_lenient()
        keys = [Key(id, bytes.fromhex(secret), left is None or left > 0) for id, secret, _, left in rows]
        signs = _signing(rows)
        return Ring(tuple(sorted(keys, key=lambda key: key.id != signs)), lenient)

    def states(self) -> list[KeyState]:
        """The keys without their secrets, the newest first. Raises as `read` does."""
        rows = self._rows()
        ages = [age / MICROSECOND for _, _, age, _ in rows]
        return [
            KeyState(id, age, None if left is None else left / MICROSECOND, id == _signing(rows), idle)
            for (id, _, _, left), age, idle in zip(rows, ages, [0.0, *ages[:-1]], strict=True)
        ]

    def note(self, app: str, retention: float) -> None:
        """Note for how many seconds messages of an app may wait: for so long keys are held, and what is unsigned is
        taken."""
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.note_retention, [(RETENTION + app, str(int(retention * MICROSECOND)))])

    def hold(self) -> float:
        """For how many seconds a key is held: as long as any message may wait."""
        return _window(self._longest())

    def rotate(self, hold: float) -> str:
        """Make a new key, and let those before verify for `hold` seconds more; 0 is for keys that somebody else knows.
        Returns its id. Raises ConfigError where messages may wait for longer."""
        longest = self._longest() / MICROSECOND
        if 0 < hold < longest:
            raise ConfigError(
                f"messages may wait for {duration.text(longest)} (App(retention=)), and true ones that are older than "
                f"{duration.text(hold)} would be refused; write --hold {duration.text(longest)}, or --hold 0s for a "
                "key that somebody else knows"
            )
        id, seconds = token_hex(8), int((HANDOVER_SECONDS + hold) * MICROSECOND)
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.add_key, [(id, new_key())])
            unit.write(self._database.sql.retire_keys, [(seconds, id, seconds)])
        return id

    def renew(self, unit: SqlUnit) -> None:
        """Replace all keys, in a transaction: those of the store that this one is a copy of sign nothing here."""
        first = first_key()
        unit.write(self._database.sql.forget_keys, [()])
        unit.write(self._database.sql.add_key, [(first["id"], first["secret"])])

    def require(self) -> None:
        """Take no unsigned messages any more. Raises ConfigError while workers of the version before are there."""
        with self._database.unit("") as unit:
            found = unit.read(self._database.sql.older_workers)
        older = [worker for (worker,) in found if not self._fleet.is_gone(worker)]
        if older:
            raise ConfigError(
                f"{len(older)} worker(s) of the version before are there and sign nothing: what they send would be "
                "refused; stop them, or start them with this version, and ask again"
            )
        self._require()

    def unsigned(self) -> float | None:
        """For how many seconds more unsigned messages are taken, at least; None: they are not taken."""
        found = self._signing()
        return None if found.until is None else max(0.0, found.window if found.until == "" else found.left)

    def _is_lenient(self) -> bool:
        """Whether unsigned messages are taken: for a time after workers of the version before were there last."""
        found = self._signing()
        if found.until is None:
            if found.oldest < SIGNING:
                self._require()
            return False
        if found.until == "" or (found.older and found.left < found.window - AGAIN_SECONDS):
            with self._database.transaction(fenced=False) as unit:
                unit.write(self._database.sql.drain_unsigned, [(str(found.now + int(DRAIN_SECONDS * MICROSECOND)),)])
        elif found.left <= 0:
            self._require()
            return False
        return True

    def _require(self) -> None:
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.require_signatures, [()])
            unit.write(self._database.sql.raise_oldest, [(SIGNING, SIGNING)])

    def _signing(self) -> "_Signing":
        with self._database.unit("") as unit:
            return _Signing(*unit.read(self._database.sql.signing)[0])

    def _longest(self) -> int:
        with self._database.unit("") as unit:
            return int(unit.read(self._database.sql.longest_retention)[0][0])

    def _rows(self) -> list[Any]:
        with self._database.unit("") as unit:
            rows = list(unit.read(self._database.sql.keys))
        if not rows:
            raise ConfigError("the store of FLOWKIT_DATABASE_URL has no keys to sign with; run: flowkit db upgrade")
        return rows


def _signing(rows: Sequence[Any]) -> str:
    """The newest key that all workers know; the oldest one if all are new."""
    known = [id for id, _, age, _ in rows if age >= KNOWN_SECONDS * MICROSECOND]
    return str(known[0] if known else rows[-1][0])


class _Signing(NamedTuple):
    """The store's record of signatures."""

    oldest: str
    """The oldest version whose code works on it."""
    until: str | None
    """When unsigned messages are not taken any more, in microseconds; empty before a process that signs was there;
    None: they are not taken."""
    now: int
    older: int
    """How many workers of the version before are there."""
    longest: int
    """The longest App(retention=) that is noted, in microseconds."""

    @property
    def window(self) -> float:
        """Seconds for which unsigned messages are taken after the last of them was there."""
        return _window(self.longest)

    @property
    def left(self) -> float:
        """Seconds until then. The time that is noted is the end for the default retention."""
        return (int(self.until or 0) - self.now) / MICROSECOND + self.window - DRAIN_SECONDS


def _window(longest: int) -> float:
    """Seconds for which any message may wait, by the longest retention that is noted in microseconds."""
    return max(DRAIN_SECONDS, longest / MICROSECOND)
