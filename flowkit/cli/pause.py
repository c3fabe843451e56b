"""`flowkit pause` and `flowkit resume`: flows of the whole fleet."""

from collections.abc import Collection

from flowkit.cli.plain import plain
from flowkit.config import Settings, open_store
from flowkit.errors import ConfigError


def pause(names: Collection[str]) -> None:
    """Let these flows or apps begin nothing. What has begun is finished; what comes is accepted, and waits."""
    _set(names, True)


def resume(names: Collection[str]) -> None:
    """Let them begin again."""
    _set(names, False)


def _set(names: Collection[str], pausing: bool) -> None:
    store = open_store(Settings.read(), create=False)
    try:
        flows = store.subscriptions()
        known = {*flows, *(flow.split(".", 1)[0] for flow in flows)}
        if unknown := sorted(set(names) - known):
            raise ConfigError(
                f"no flow or app {', '.join(map(plain, unknown))} is in this store; flowkit status names the flows"
            )
        before = store.paused()
        (store.pause if pausing else store.resume)(names)
    finally:
        store.close()
    for name in names:
        was = "was already" if (name in before) == pausing else "is"
        print(f"{plain(name)} {was} {'paused' if pausing else 'not paused'}")
