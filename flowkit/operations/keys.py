"""Keys: what signs messages at a broker, for how long it verifies, and which apps it is held for."""

from typing import NamedTuple

from flowkit import duration
from flowkit.app import App
from flowkit.operations.store import operated
from flowkit.services import Services
from flowkit.store.keyring import HANDOVER_SECONDS, KNOWN_SECONDS, Keyring


class Rotation(NamedTuple):
    """A new key. Times are in seconds from now."""

    id: str
    signs: float
    """From then on, when all workers know it."""
    verify: float
    """Until then the keys before it do."""


def rotate(keyring: Keyring, hold: float | None) -> Rotation:
    """Make a new key. Those before it verify for `hold` seconds after it signs; None: for as long as any message may
    wait. Blocks. Raises ConfigError where messages may wait for longer."""
    seconds = keyring.hold() if hold is None else hold
    return Rotation(keyring.rotate(seconds), KNOWN_SECONDS, HANDOVER_SECONDS + seconds)


def note(app: App, services: Services) -> None:
    """Note how long messages of an app may wait, where they are signed: their keys are held as long."""
    if is_signed(services):
        operated(services.store).keyring.note(app.name, app.retention)


def doubts(app: App, services: Services) -> list[str]:
    """Warnings of keys that verify no more while messages of an app may still wait that they have signed."""
    return [
        f"key {key.id} verifies for {duration.ago(key.left)} more, and App(retention={duration.text(app.retention)!r}) "
        "lets messages wait longer: true ones that it has signed are refused then; see that they are applied before"
        for key in (operated(services.store).keyring.states() if is_signed(services) else ())
        if key.left is not None and 0 < key.left < app.retention - key.idle
    ]


def is_signed(services: Services) -> bool:
    """Whether messages travel by a broker, or have done so."""
    return bool(services.settings.broker_url or services.settings.drain_url)
