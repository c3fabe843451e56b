"""Signatures of what this store sends: nobody else on the broker can make one.

A signature is a keyed hash of the address, the envelope, the headers and the body. It names the headers that it covers:
the broker, and what is between, may add others.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Any

from pydantic_core import from_json, to_json

from flowkit.ports import Clock, Key, Ring

HEADER = "flowkit-mac"
"""The AMQP header of a signature: the id of the key, the hash, and the names of the headers that it covers."""
BYTES = 16
"""Of a hash."""
PURPOSE = b"flowkit-mac"
"""What else is hashed with these keys has other hashes."""
MOST_NAMES = 100
"""A message with more headers is signed with all that it has: their names would not fit beside them in a frame."""
LOOK_SECONDS = 30.0
"""The keys are read again after so long: see store/keyring.py, which waits twice as long before a new one signs."""
AGAIN_SECONDS = 1.0
"""An unknown key lets a process read them sooner, but not more often than this."""


class Signatures:
    """Signs with the key of the store, and verifies with all. Any thread may call it; only `look` and `covered` block,
    and only while they read the keys: they raise what reading raises."""

    def __init__(self, read: Callable[[], Ring], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._reading = threading.Lock()
        self._ring = Ring(())
        self._by_id: Mapping[str, Key] = {}
        self._looked = float("-inf")

    @property
    def lenient(self) -> bool:
        """Whether unsigned messages are taken too."""
        return self._ring.lenient

    def look(self, seconds: float = LOOK_SECONDS) -> None:
        """Read the keys, unless they were read less than so many seconds ago."""
        if self._clock.monotonic() - self._looked < seconds:
            return
        with self._reading:
            if self._clock.monotonic() - self._looked < seconds:
                return
            ring = self._read()
            self._by_id = {key.id: key for key in ring.keys}
            self._ring = ring
            self._looked = self._clock.monotonic()

    def sign(self, address: str, envelope: str, headers: Mapping[str, str], body: bytes) -> str:
        """The signature of a message for an address."""
        key = self._ring.keys[0]
        names = list(headers) if len(headers) <= MOST_NAMES else None
        return to_json([key.id, _hash(key, address, envelope, headers, body), names]).decode()

    def covered(
        self, address: str, envelope: str, signature: object, headers: Mapping[str, Any], body: bytes
    ) -> dict[str, Any] | None:
        """The headers of a message that a valid signature covers; None if it is not this store's, or not for here."""
        parts = _parts(signature)
        if parts is None:
            return None
        id, hash, names = parts
        if id not in self._by_id:
            self.look(AGAIN_SECONDS)
        key = self._by_id.get(id)
        signed = headers if names is None else {name: headers.get(name) for name in names}
        if key is None or not key.valid or not all(isinstance(value, str) for value in signed.values()):
            return None
        return dict(signed) if _is_hash(hash, key, address, envelope, signed, body) else None

    def knows(self, id: str) -> bool:
        """Whether this store has a key of that id."""
        return id in self._by_id

    def seal(self, address: str, row: str, id: str, source: str, body: bytes) -> tuple[str, str]:
        """The signature of an event for other programs, and the id of its key. That does not tell which store it is."""
        key = self._ring.keys[0]
        return _hash(key, address, row, {"id": id, "source": source}, body), key.id

    def is_sealed(self, seal: str, key: str, address: str, row: str, id: str, source: str, body: bytes) -> bool:
        """Whether an event is a true copy of one that this store sent. Keys that verify no more count: an event that
        waits since then would else be applied beside the copies that its flows got."""
        known = self._by_id.get(key)
        return known is not None and _is_hash(seal, known, address, row, {"id": id, "source": source}, body)


def _parts(signature: object) -> tuple[str, str, Sequence[str] | None] | None:
    """The parts of a signature; None if it is none."""
    try:
        id, hash, names = from_json(signature) if isinstance(signature, str) else (None, None, None)
    except (TypeError, ValueError):
        return None
    if not isinstance(id, str) or not isinstance(hash, str):
        return None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return None
    return id, hash, names


def _hash(key: Key, address: str, envelope: str, headers: Mapping[str, Any], body: bytes) -> str:
    # What is before the body is one array of JSON, so that no part of it can be taken for another one.
    made = blake2b(
        to_json([address, envelope, list(headers.items())]), digest_size=BYTES, key=key.secret, person=PURPOSE
    )
    made.update(body)
    return made.hexdigest()


def _is_hash(hash: str, key: Key, address: str, envelope: str, headers: Mapping[str, Any], body: bytes) -> bool:
    true = _hash(key, address, envelope, headers, body)
    return compare_digest(hash.encode("utf-8", "replace"), true.encode())
