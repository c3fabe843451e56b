"""Signatures of the messages that this store sends: no other user of the broker can make one.

A signature is a keyed hash of the address, the envelope, the headers and the body. It names the headers that it covers:
the broker and its plugins may add others.
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
"""Bytes of a hash."""
PURPOSE = b"flowkit-mac"
"""Separates these hashes from others with the same keys."""
MOST_NAMES = 100
"""Names in a signature, at most: with more, they would not fit beside the headers in a frame. The signature of such a
message covers all its headers, and names none."""
LOOK_SECONDS = 30.0
"""Seconds between two reads of the keys. A new key signs only after twice as long: see store/keyring.py."""
AGAIN_SECONDS = 1.0
"""Seconds between two reads of the keys, at least, when a message has an unknown key."""


class Signatures:
    """Signs with the store's newest key, and verifies with all its keys. Any thread may call it.

    Only `look` and `covered` block, while they read the keys. They raise the errors of reading.
    """

    def __init__(self, read: Callable[[], Ring], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._reading = threading.Lock()
        self._ring = Ring(())
        self._keyed: Mapping[str, blake2b] = {}
        """Id of a key -> a hash initialised with the key. Each message gets a copy of it."""
        self._valid: frozenset[str] = frozenset()
        """The ids of the keys that have not expired."""
        self._looked = float("-inf")

    @property
    def lenient(self) -> bool:
        """Whether unsigned messages are accepted too."""
        return self._ring.lenient

    def look(self, seconds: float = LOOK_SECONDS) -> None:
        """Read the keys, unless that was less than `seconds` ago. Blocks meanwhile."""
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
        """Return the signature of a message to an address."""
        id = self._ring.keys[0].id
        names = list(headers) if len(headers) <= MOST_NAMES else None
        return to_json([id, self._hash(id, address, envelope, headers, body), names]).decode()

    def covered(
        self, address: str, envelope: str, signature: object, headers: Mapping[str, Any], body: bytes
    ) -> dict[str, Any] | None:
        """Return the headers that a valid signature covers; None if it is not this store's, or for another address."""
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
        """Whether this store has a key with that id, expired or not."""
        return id in self._keyed

    def seal(self, address: str, row: str, id: str, source: str, body: bytes) -> tuple[str, str]:
        """Return the signature of an event for other programs, and the id of its key, which does not name the store."""
        key = self._ring.keys[0].id
        return self._hash(key, address, row, {"id": id, "source": source}, body), key

    def is_sealed(self, seal: str, key: str, address: str, row: str, id: str, source: str, body: bytes) -> bool:
        """Whether this store sent an event. Expired keys count: else an old event would be applied in addition to the
        copies that the store's own flows received."""
        return key in self._keyed and self._is_hash(seal, key, address, row, {"id": id, "source": source}, body)

    def _hash(self, key: str, address: str, envelope: str, headers: Mapping[str, Any], body: bytes) -> str:
        made = self._keyed[key].copy()
        # One JSON array precedes the body, so that no part of it can be taken for another part.
        made.update(to_json([address, envelope, list(headers.items())]))
        made.update(body)
        return made.hexdigest()

    def _is_hash(
        self, hash: str, key: str, address: str, envelope: str, headers: Mapping[str, Any], body: bytes
    ) -> bool:
        true = self._hash(key, address, envelope, headers, body)
        return compare_digest(hash.encode("utf-8", "replace"), true.encode())
