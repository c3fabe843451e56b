"""Subscriptions: the flows that get messages; renaming and removing those that no app has any more."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from flowkit.app import App
from flowkit.engine.adoption import received, unread
from flowkit.errors import ConfigError, DefinitionError, Undecodable
from flowkit.message import check_name
from flowkit.operations import pending
from flowkit.operations.names import similar
from flowkit.operations.store import OperatedStore
from flowkit.plain import plain
from flowkit.ports import CANDIDATE, EXCHANGE, Delivery, Store, Transport
from flowkit.store.subscribers import Settled


class Known(NamedTuple):
    """A flow in the store, with the numbers of its waiting messages and dead letters. `silent`: seconds since an app
    with this flow started last; None if the flow is not subscribed."""

    flow: str
    channel: str = ""
    silent: float | None = None
    orphaned: bool = False
    waiting: int = 0
    dead: int = 0

    @property
    def app(self) -> str:
        return self.flow.split(".", 1)[0]

    @property
    def warning(self) -> str:
        """A warning about an orphan, with the commands that end it."""
        lack = f"the program of app {plain(self.app)} that started last has no such flow"
        return _orphaned(self, lack)


def orphans(app: App, store: Store) -> list[str]:
    """Warnings about the app's subscribed flows that `app` does not have. Blocks for the store; asks no broker."""
    lack = f"app {app.name} has no such flow"
    return [
        _orphaned(Known(flow, channel, waiting=store.ledger.unfinished([flow])), lack)
        for flow, channel in sorted(store.subscribers.channels().items())
        if flow.startswith(f"{app.name}.") and flow not in app.flows
    ]


def _orphaned(one: Known, lack: str) -> str:
    flow, short = plain(one.flow), plain(one.flow.partition(".")[2])
    subscribed = f"is subscribed to {plain(one.channel)}, but {lack}" if one.channel else "is not subscribed"
    waits = f"; {one.waiting:,} message(s) of it wait" if one.waiting else ""
    return (
        f"orphaned: {flow} {subscribed}{waits}; if it has another name now, keep the old one by @app.flow(…, "
        f"name={short!r}), or write: flowkit subscriptions move {flow} {plain(one.app)}.NAME; if it is gone, write: "
        f"flowkit subscriptions remove {flow}; if it is of another program whose app is named {plain(one.app)} too, "
        "give one of the two apps another name"
    )


def known(store: OperatedStore, transport: Transport) -> list[Known]:
    """The subscribed flows of the store, and others that have messages or dead letters, by name. Blocks."""
    subscribed = {one.flow: one for one in store.subscribers.read() if not one.flow.startswith(EXCHANGE)}
    lost = {one.flow for one in store.subscribers.orphans()}
    balances = store.ledger.balances()
    flows = sorted({*subscribed, *(flow for flow in balances if flow)})
    waiting = pending.waiting(store.ledger, transport, flows)
    found = []
    for flow in flows:
        one, many = subscribed.get(flow), waiting.many(flow)
        dead = balances[flow].letters if flow in balances else 0
        if one is not None:
            found.append(Known(flow, one.channel, one.silent, flow in lost, many, dead))
        elif many or dead:
            found.append(Known(flow, orphaned=True, waiting=many, dead=dead))
    return found


def removable(store: OperatedStore, transport: Transport, flow: str) -> Known:
    """A flow that may be removed, with the counts of what `remove` would discard. Blocks. Raises ConfigError if the
    flow is unknown, or running workers have it."""
    one = _find(known(store, transport), flow)
    if not one.orphaned and store.fleet.is_staffed(one.app):
        raise ConfigError(
            f"flow {flow} is in use by the running workers of app {one.app}; start the app without the flow, or stop "
            "all instances, and try again"
        )
    return one


def remove(store: OperatedStore, transport: Transport, one: Known) -> Settled:
    """Remove a flow that is `removable`, and discard its pending messages and dead letters. Blocks."""
    _fetch(store, transport, one)
    return store.subscribers.remove(one.flow)


def move(store: OperatedStore, transport: Transport, flow: str, heir: str) -> Settled:
    """Rename `flow` to `heir`, with its messages in the store and at the broker. Blocks. Raises ConfigError if the move
    is impossible, and DefinitionError for a malformed name."""
    _check_heir(flow, heir)
    found = known(store, transport)
    one = _find(found, flow)
    there = next((other.channel for other in found if other.flow == heir and other.channel), one.channel)
    if one.channel and there != one.channel:
        raise ConfigError(
            f"flow {flow} receives from channel {one.channel}, and {heir} from {there}, which carries other messages; "
            f"let an app that has {flow} finish its messages, or remove the flow"
        )
    if not there:
        raise ConfigError(f"neither {flow} nor {heir} is subscribed; start the app that has {heir}, and ask again")
    _refuse_workers(store, transport, {one.app, heir.split(".", 1)[0]}, flow)
    _fetch(store, transport, one._replace(channel=there), heir)
    return store.subscribers.move(flow, heir)


def _check_heir(flow: str, heir: str) -> None:
    try:
        check_name("a flow's name", heir)
    except Undecodable as error:
        raise DefinitionError(str(error)) from None
    app, _, short = heir.partition(".")
    if not (app and short) or CANDIDATE in heir or heir.startswith(EXCHANGE) or heir == flow:
        raise ConfigError(f"{plain(heir)} is no new name for flow {plain(flow)}; write the full one: APP.FLOW")


def _refuse_workers(store: OperatedStore, transport: Transport, apps: Collection[str], flow: str) -> None:
    """Raise ConfigError while workers run that may receive for a flow, or send to it through the broker."""
    if transport.hops:
        apps = {*apps, *(one.app for one in store.ledger.workers())}
    staffed = [app for app in sorted(apps) if store.fleet.is_staffed(app)]
    if staffed:
        raise ConfigError(
            f"workers of app {', '.join(staffed)} run, and may have messages of flow {flow} in flight; stop all "
            "instances, move the flow, and start the new ones"
        )


def _fetch(store: OperatedStore, transport: Transport, one: Known, heir: str = "") -> None:
    """Move the messages of a flow from the broker to the store. Foreign messages are identified again at the next
    delivery; refused messages become dead letters."""

    def keep(deliveries: Sequence[Delivery]) -> None:
        adopted = [unread(received(each, one.channel)) if each.foreign else each for each in deliveries]
        store.subscribers.keep(one.flow, adopted, heir)

    transport.empty(one.flow, keep)


def _find(found: Sequence[Known], flow: str) -> Known:
    for one in found:
        if one.flow == flow:
            return one
    meant = similar(flow, [one.flow for one in found])
    raise ConfigError(f"no flow {plain(flow)} is in this store{meant}; flowkit subscriptions list names them")
