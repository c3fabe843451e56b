"""`flowkit check` and `flowkit describe`: check an app, and show its flows and channels."""

from typing import Any

from flowkit import duration
from flowkit.analysis.statelessness import traps
from flowkit.app import App
from flowkit.cli import show
from flowkit.cli.load import load, refuse_green_threads
from flowkit.errors import StoreMissing, StoreOutdated
from flowkit.operations import keys
from flowkit.operations.subscriptions import orphans
from flowkit.plain import plain
from flowkit.services import Services, connect
from flowkit.settings import Settings, doubts

MEMORY = "sqlite:///:memory:"


def check(name: str) -> None:
    """Check definitions and configuration, and print notes and warnings. Raises DefinitionError and ConfigError."""
    app = load(name)
    refuse_green_threads(name)
    services, *outdated = _look()
    try:
        app.check(services.store.injects, _subscribers(services))
        store: Any = services.store
        app.check_moves(store)
        store.schema.check_tables(app.name, app.metadata)
        said = [
            *store.audit(),
            *services.transport.audit(list(app.flows), app.shared(services.store.subscribers.channels())),
        ]
        lost = orphans(app, services.store)
        found: list[object] = [*store.doubts(), *keys.doubts(app, services)]
        found += list(services.transport.doubts({flow.name: flow.deadline for flow in app.flows.values()}))
    finally:
        services.close()
    found += [*outdated, *doubts(), *lost]
    found += [trap for flow in app.flows.values() for trap in traps(flow)]
    for line in (*said, *found):
        print(plain(str(line)))
    verdict = f"{len(found)} warnings" if found else "nothing wrong"
    print(f"app {app.name}: {len(app.flows)} flows, {len(app.channels)} channels: {verdict}")


def describe(name: str, json: bool) -> None:
    """Show flows and channels."""
    app = load(name)
    refuse_green_threads(name)  # a warm spare asks this command whether the app can run
    services, *outdated = _look()
    try:
        subscriptions = dict(services.store.subscribers.channels())
        lost = [] if json else [*outdated, *orphans(app, services.store)]
    finally:
        services.close()
    found = _description(app, subscriptions, services.store.serial)
    if json:
        show.as_json(found)
        return
    show.table(
        f"App {app.name}",
        ["flow", "from", "to", "retries", "deadline", "lanes", "after the last attempt"],
        [
            (
                flow["flow"],
                flow["from"],
                ", ".join(flow["to"]),
                flow["retries"],
                flow["deadline"],
                str(flow["lanes"]),
                flow["dead_letters"],
            )
            for flow in found["flows"]
        ],
    )
    print()
    show.table(
        "Channels",
        ["channel", "carries", "subscribers"],
        [(one["channel"], one["type"], ", ".join(one["subscribers"]) or "nobody") for one in found["channels"]],
    )
    for line in lost:
        print(f"\n{plain(line)}")


def _look() -> tuple[Any, ...]:
    """Open the services of the settings without creating or changing anything. Returns them, and perhaps a warning. An
    empty database in memory stands for one that does not exist or has an outdated schema."""
    settings = Settings.read()
    try:
        return (connect(settings, create=False),)
    except StoreMissing:
        return (_nothing(settings),)
    except StoreOutdated as error:
        return _nothing(settings), f"{error}, or flowkit run; its contents were not checked"


def _nothing(settings: Settings) -> Services:
    return connect(settings.model_copy(update={"database_url": MEMORY}))


def _description(app: App, subscriptions: dict[str, str], serial: bool) -> dict[str, Any]:
    subscriptions |= {flow.name: flow.source.name for flow in app.flows.values()}
    return {
        "app": app.name,
        "retention": duration.text(app.retention),
        "dead_letter_hold": duration.text(app.dead_letter_hold),
        "flows": [
            {
                "flow": flow.name,
                "from": flow.source.name,
                "to": [channel.name for channel in flow.to],
                "retries": str(flow.retry),
                "deadline": duration.text(flow.deadline),
                "lanes": flow.lanes(serial),
                "dead_letters": f"flowkit dead list --flow {flow.name}",
            }
            for flow in app.flows.values()
        ],
        "channels": [
            {
                "channel": channel.name,
                "type": getattr(channel.type, "__name__", str(channel.type)),
                "subscribers": sorted(flow for flow, name in subscriptions.items() if name == channel.name),
            }
            for channel in app.channels.values()
        ],
        "orphaned": sorted(flow for flow in subscriptions if flow.startswith(f"{app.name}.") and flow not in app.flows),
    }


def _subscribers(services: Services) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for flow, channel in services.store.subscribers.channels().items():
        found.setdefault(channel, []).append(flow)
    return found
