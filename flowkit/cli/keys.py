"""`flowkit keys`: the signing keys of messages at a broker. No command shows a secret."""

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.opened import opened_store
from flowkit.operations import keys
from flowkit.store.keyring import KeyState


def show_list(json: bool) -> None:
    """List the signing keys, and print whether unsigned messages are accepted."""
    with opened_store() as store:
        found, unsigned = store.keyring.states(), store.keyring.unsigned()
    if json:
        show.as_json({"keys": [one._asdict() for one in found], "unsigned_seconds": unsigned})
        return
    show.table("Keys", ["key", "state"], [(one.id, _state(one)) for one in found])
    if unsigned is not None:
        print(
            f"\nunsigned messages are accepted for {duration.ago(unsigned)} more, because an earlier version of "
            "FlowKit sent some; once these have finished, write: flowkit keys require"
        )


def rotate(hold: str) -> None:
    """Make a new signing key. Without `hold`, earlier keys verify for as long as any message may wait."""
    with opened_store() as store:
        made = keys.rotate(store.keyring, duration.seconds(hold, "--hold") if hold else None)
    print(
        f"key {made.id} signs in {duration.text(made.signs)}; the keys before it verify for "
        f"{duration.text(made.verify)}"
    )


def require() -> None:
    """Refuse unsigned messages from now on."""
    with opened_store() as store:
        store.keyring.require()
    print("only signed messages are accepted from now on, by each worker within 30s; earlier versions no longer start")


def _state(key: KeyState) -> str:
    if key.left is not None and key.left <= 0:
        return "no longer verifies"
    left = "" if key.left is None else f"verifies for {duration.ago(key.left)} more"
    return ", ".join(filter(None, ["signs" if key.signs else "", left])) or "signs soon"
