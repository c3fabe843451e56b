"""Signing keys: they sign messages at a broker, and verify them for as long as messages of an app may wait."""

from typing import NamedTuple

from flowkit import duration
from flowkit.app import App
from flowkit.operations.store import operated
from flowkit.services import Services
from flowkit.store.keyring import HANDOVER_SECONDS, KNOWN_SECONDS, Keyring


class Rotation(NamedTuple):
    """A new signing key. Times are in seconds from now."""

    id: str
    signs: float
    """The key signs from then on, when all workers know it."""
    verify: float
    """Earlier keys verify until then."""


def rotate(keyring: Keyring, hold: float | None) -> Rotation:
    """Make a new signing key. Earlier keys verify for `hold` seconds after it signs; None: for as long as any message
    may wait. Blocks. Raises ConfigError if messages may wait longer than `hold`."""
    seconds = keyring.hold() if hold is None else hold
    return Rotation(keyring.rotate(seconds), KNOWN_SECONDS, HANDOVER_SECONDS + seconds)


def note(app: App, services: Services) -> None:
    """If messages are signed, record how long an app's messages may wait: keys verify at least that long. Blocks."""
    if is_signed(services):
        operated(services.store).keyring.note(app.name, app.retention)


def doubts(app: App, services: Services) -> list[str]:
    """Warnings about keys that will stop verifying while messages of an app that they signed may still wait. Blocks."""
    return [
        f"key {key.id} verifies for {duration.ago(key.left)} more, and App(retention={duration.text(app.retention)!r}) "
        "lets messages wait longer: valid messages that it signed will then be refused; make sure they are applied "
        "first"
        for key in (operated(services.store).keyring.states() if is_signed(services) else ())
        if key.left is not None and 0 < key.left < app.retention - key.idle
    ]


def is_signed(services: Services) -> bool:
    """Whether messages go through a broker, or one is being drained."""
    return bool(services.settings.broker_url or services.settings.drain_url)
