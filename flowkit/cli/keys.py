"""`flowkit keys`: the keys by which messages at a broker are signed. No command shows a secret."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowkit import duration
from flowkit.app import App
from flowkit.cli import show
from flowkit.config import Services, Settings, open_store
from flowkit.store.keyring import HANDOVER_SECONDS, KNOWN_SECONDS, Keyring, KeyState


def show_list(json: bool) -> None:
    """List the keys, and say whether unsigned messages are taken."""
    with _keyring() as keyring:
        found, unsigned = keyring.states(), keyring.unsigned()
    if json:
        show.as_json({"keys": [one._asdict() for one in found], "unsigned_seconds": unsigned})
        return
    show.table("Keys", ["key", "state"], [(one.id, _state(one)) for one in found])
    if unsigned is not None:
        print(
            f"\nunsigned messages are taken for {duration.ago(unsigned)} more, for those that a version before sent; "
            "once these are at their end, write: flowkit keys require"
        )


def rotate(hold: str) -> None:
    """Make a new key. Without `hold`, those before it verify for as long as any message may wait."""
    with _keyring() as keyring:
        seconds = duration.seconds(hold, "--hold") if hold else keyring.hold()
        id = keyring.rotate(seconds)
    print(
        f"key {id} signs in {duration.text(KNOWN_SECONDS)}; the keys before it verify for "
        f"{duration.text(HANDOVER_SECONDS + seconds)}"
    )


def require() -> None:
    """Take no unsigned messages any more."""
    with _keyring() as keyring:
        keyring.require()
    print(
        "only signed messages are taken from now on, by each worker within 30s; versions before do not start any more"
    )


def note(app: App, services: Services) -> None:
    """Note how long messages of an app may wait, where they are signed: their keys are held as long."""
    if is_signed(services):
        store: Any = services.store
        store.keyring.note(app.name, app.retention)


def doubts(app: App, services: Services) -> list[str]:
    """Warnings of keys that verify no more while messages of an app may still wait that they have signed."""
    store: Any = services.store
    return [
        f"key {key.id} verifies for {duration.ago(key.left)} more, and App(retention={duration.text(app.retention)!r}) "
        "lets messages wait longer: true ones that it has signed are refused then; see that they are applied before"
        for key in (store.keyring.states() if is_signed(services) else ())
        if key.left is not None and 0 < key.left < app.retention - key.idle
    ]


def is_signed(services: Services) -> bool:
    """Whether messages travel by a broker, or have done so."""
    return bool(services.settings.broker_url or services.settings.drain_url)


def _state(key: KeyState) -> str:
    if key.left is not None and key.left <= 0:
        return "verifies no more"
    left = "" if key.left is None else f"verifies for {duration.ago(key.left)} more"
    return ", ".join(filter(None, ["signs" if key.signs else "", left])) or "signs soon"


@contextmanager
def _keyring() -> Iterator[Keyring]:
    store: Any = open_store(Settings.read(), create=False)
    try:
        yield store.keyring
    finally:
        store.close()
