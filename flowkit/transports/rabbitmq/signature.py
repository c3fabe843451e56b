"""Signatures of what this store sends: nobody else on the broker can make one.

A signature is a keyed hash of the address, the envelope, the headers and the body. It names the headers that it covers:
the broker, and what is between, may add others.
"""

import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from hmac import compare_digest
from typing import Any

from pydantic_core import from_json, to_json

from flowkit.ports import Clock, Ring

HEADER = "flowkit-mac"
"""The AMQP header of a signature: the id of the key, the hash, and the names of the headers that it covers."""
BYTES = 16
"""Of a hash."""
PURPOSE = b"flowkit-mac"
"""Sets these hashes apart from others that are made with the same keys."""
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
        self._keyed: Mapping[str, blake2b] = {}
        """The id of each key -> a hash that has taken the key, and is copied for each message."""
        self._valid: frozenset[str] = frozenset()
        """The ids of keys that verify messages."""
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
            self._keyed = {key.id: blake2b(digest_size=BYTES, key=key.secret, person=PURPOSE) for key in ring.keys}
            self._valid = frozenset(key.id for key in ring.keys if key.valid)
            self._ring = ring
            self._looked = self._clock.monotonic()

    def sign(self, address: str, envelope: str, headers: Mapping[str, str], body: bytes) -> str:
        """The signature of a message for an address."""
        id = self._ring.keys[0].id
        names = list(headers) if len(headers) <= MOST_NAMES else None
        return to_json([id, self._hash(id, address, envelope, headers, body), names]).decode()

    def covered(
        self, address: str, envelope: str, signature: object, headers: Mapping[str, Any], body: bytes
    ) -> dict[str, Any] | None:
        """The headers of a message that a valid signature covers; None if it is not this store's, or not for here."""
        try:
            id, hash, names = from_json(signature) if isinstance(signature, str) else (None, None, ())
            signed = dict(headers) if names is None else {name: headers[name] for name in names}
        except (TypeError, ValueError, KeyError):
            return None
        if not isinstance(id, str) or not isinstance(hash, str):
            return None
        if not all(isinstance(value, str) for value in signed.values()):
            return None
        if id not in self._keyed:
            self.look(AGAIN_SECONDS)
        if id not in self._valid:
            return None
        return signed if self._is_hash(hash, id, address, envelope, signed, body) else None

    def knows(self, id: str) -> bool:
        """Whether this store has a key of that id."""
        return id in self._keyed

    def seal(self, address: str, row: str, id: str, source: str, body: bytes) -> tuple[str, str]:
        """The signature of an event for other programs, and the id of its key. That does not tell which store it is."""
        key = self._ring.keys[0].id
        return self._hash(key, address, row, {"id": id, "source": source}, body), key

    def is_sealed(self, seal: str, key: str, address: str, row: str, id: str, source: str, body: bytes) -> bool:
        """Whether an event is a true copy of one that this store sent. Keys that verify no more count: an event that
        waits since then would else be applied beside the copies that its flows got."""
        return key in self._keyed and self._is_hash(seal, key, address, row, {"id": id, "source": source}, body)

    def _hash(self, key: str, address: str, envelope: str, headers: Mapping[str, Any], body: bytes) -> str:
        made = self._keyed[key].copy()
        # What is before the body is one array of JSON, so that no part of it can be taken for another one.
        made.update(to_json([address, envelope, list(headers.items())]))
        made.update(body)
        return made.hexdigest()

    def _is_hash(
        self, hash: str, key: str, address: str, envelope: str, headers: Mapping[str, Any], body: bytes
    ) -> bool:
        true = self._hash(key, address, envelope, headers, body)
        return compare_digest(hash.encode("utf-8", "replace"), true.encode())
