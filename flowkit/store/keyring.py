"""The signing keys of a store: they sign the messages that travel by a broker."""

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
"""Seconds until a new key signs. Workers read the keys twice as often, so that all know it by then."""
HANDOVER_SECONDS = 2 * KNOWN_SECONDS
"""Seconds after which no worker signs with the previous key. The `hold` of that key begins then."""
DRAIN_SECONDS = 14 * 86_400.0
"""Seconds for which unsigned messages are accepted after the last worker of an older version: the default of
App(retention=), because later ones are dead letters for their age. An app with a longer retention extends it."""
AGAIN_SECONDS = 3600.0
"""Seconds between two updates of the time at which such a worker was last there."""


class KeyState(NamedTuple):
    """A signing key without its secret. All times are in seconds.

    `age` counts from its creation. `left` is the time until it expires; None: it does not expire. `idle` counts from
    the creation of the next key.
    """

    id: str
    age: float
    left: float | None
    signs: bool
    idle: float = 0.0


class Keyring:
    """Reads and changes the signing keys. Every call blocks; any thread may call it. Callers must not show secrets."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet

    def read(self) -> Ring:
        """Return the keys, for a process that uses a broker. If signatures are required, the store refuses older code
        from then on.

        Raises ConfigError if there are no keys.
        """
        rows, lenient = self._rows(), self._is_lenient()
        keys = [Key(id, bytes.fromhex(secret), left is None or left > 0) for id, secret, _, left in rows]
        signs = _signing(rows)
        return Ring(tuple(sorted(keys, key=lambda key: key.id != signs)), lenient)

    def states(self) -> list[KeyState]:
        """Return the keys without their secrets, the newest first. Raises like `read`."""
        rows = self._rows()
        ages = [age / MICROSECOND for _, _, age, _ in rows]
        return [
            KeyState(id, age, None if left is None else left / MICROSECOND, id == _signing(rows), idle)
            for (id, _, _, left), age, idle in zip(rows, ages, [0.0, *ages[:-1]], strict=True)
        ]

    def note(self, app: str, retention: float) -> None:
        """Record the retention of an app, in seconds. For the longest one, replaced keys verify and unsigned messages
        are accepted."""
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.note_retention, [(RETENTION + app, str(int(retention * MICROSECOND)))])

    def hold(self) -> float:
        """Return the seconds for which a replaced key still verifies: as long as any message may wait."""
        return _window(self._longest())

    def rotate(self, hold: float) -> str:
        """Create a new key, and return its id. Older keys verify for `hold` seconds more; 0 is for a leaked key.

        Raises ConfigError if messages may wait for longer than `hold`, unless that is 0.
        """
        longest = self._longest() / MICROSECOND
        if 0 < hold < longest:
            raise ConfigError(
                f"messages may wait for {duration.text(longest)} (App(retention=)), and genuine ones older than "
                f"{duration.text(hold)} would be refused; write --hold {duration.text(longest)}, or --hold 0s for a "
                "key that has leaked"
            )
        id, seconds = token_hex(8), int((HANDOVER_SECONDS + hold) * MICROSECOND)
        with self._database.transaction(fenced=False) as unit:
            unit.write(self._database.sql.add_key, [(id, new_key())])
            unit.write(self._database.sql.retire_keys, [(seconds, id, seconds)])
        return id

    def renew(self, unit: SqlUnit) -> None:
        """Replace all keys, in the transaction of `unit`: the keys of the copied store must not sign here."""
        first = first_key()
        unit.write(self._database.sql.forget_keys, [()])
        unit.write(self._database.sql.add_key, [(first["id"], first["secret"])])

    def require(self) -> None:
        """Accept no unsigned messages any more. Raises ConfigError while workers of an older version are there."""
        with self._database.unit("") as unit:
            found = unit.read(self._database.sql.older_workers)
        older = [worker for (worker,) in found if not self._fleet.is_gone(worker)]
        if older:
            raise ConfigError(
                f"{len(older)} worker(s) of an older version are there and sign nothing: their messages would be "
                "refused; stop them, or start them with this version, and run this again"
            )
        self._require()

    def unsigned(self) -> float | None:
        """Return the seconds for which unsigned messages are still accepted, at least; None: they are refused."""
        found = self._signing()
        return None if found.until is None else max(0.0, found.window if found.until == "" else found.left)

    def _is_lenient(self) -> bool:
        """Whether unsigned messages are accepted: for a time after the last worker of an older version."""
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
    """Return the id of the newest key that all workers know, or of the oldest key if all are new."""
    known = [id for id, _, age, _ in rows if age >= KNOWN_SECONDS * MICROSECOND]
    return str(known[0] if known else rows[-1][0])


class _Signing(NamedTuple):
    """The store's record of signatures."""

    oldest: str
    """The oldest schema version whose code may use the store."""
    until: str | None
    """The time until which unsigned messages are accepted, in microseconds; empty before the first process that signs;
    None: they are refused."""
    now: int
    older: int
    """The number of workers of an older version."""
    longest: int
    """The longest recorded App(retention=), in microseconds."""

    @property
    def window(self) -> float:
        """Seconds for which unsigned messages are accepted after the last worker of an older version."""
        return _window(self.longest)

    @property
    def left(self) -> float:
        """Seconds until unsigned messages are refused. `until` is the end for the default retention."""
        return (int(self.until or 0) - self.now) / MICROSECOND + self.window - DRAIN_SECONDS


def _window(longest: int) -> float:
    """Return the seconds for which any message may wait. `longest`: the longest recorded retention, in microseconds."""
    return max(DRAIN_SECONDS, longest / MICROSECOND)
