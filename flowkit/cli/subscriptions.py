"""`flowkit subscriptions`: the flows that are subscribed, and the end of those that no program has any more."""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from flowkit.app import App
from flowkit.cli import show
from flowkit.cli.name import similar
from flowkit.cli.plain import plain
from flowkit.config import Services, connect
from flowkit.engine.adoption import received, unread
from flowkit.errors import ConfigError, DefinitionError, FlowKitError, Undecodable
from flowkit.message import check_name
from flowkit.ports import CANDIDATE, EXCHANGE, Delivery, Store, Transport


class Known(NamedTuple):
    """A flow that is in the store, and what is there of it. `silent` is in seconds since a program that has it
    started; None where it is not subscribed."""

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
        """Tell of an orphan, and of the command to write."""
        lack = f"the program of app {plain(self.app)} that started last has no such flow"
        return _orphaned(self, lack)


def orphans(app: App, store: Store) -> list[str]:
    """Tell of flows that are subscribed, and that this app does not have. Blocks, and asks no broker."""
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


def known(store: Any, transport: Transport) -> list[Known]:
    """The flows of the store: those that are subscribed, and those that are not and have messages. Blocks."""
    subscribed = {one.flow: one for one in store.subscribers.read() if not one.flow.startswith(EXCHANGE)}
    lost = {one.flow for one in store.subscribers.orphans()}
    balances, backlog = store.ledger.balances(), store.ledger.backlog()
    flows = sorted({*subscribed, *(flow for flow in balances if flow)})
    queued = transport.depths(flows)
    found = []
    for flow in flows:
        one = subscribed.get(flow)
        waiting = queued.get(flow, 0) + (sum(backlog[flow][:4]) if flow in backlog else 0)
        dead = balances[flow].letters if flow in balances else 0
        if one is not None:
            found.append(Known(flow, one.channel, one.silent, flow in lost, waiting, dead))
        elif waiting or dead:
            found.append(Known(flow, orphaned=True, waiting=waiting, dead=dead))
    return found


def show_list(json: bool) -> None:
    """List the subscriptions."""
    with _services() as services:
        found = known(services.store, services.transport)
    if json:
        show.as_json([one._asdict() for one in found])
        return
    show.table(
        "Subscriptions",
        ["flow", "channel", "last started", "waiting", "dead", "state"],
        [
            (
                one.flow,
                one.channel,
                show.ago(one.silent),
                one.waiting,
                one.dead,
                "orphaned" if one.orphaned else "subscribed",
            )
            for one in found
        ],
    )
    for one in found:
        if one.orphaned:
            print(f"\n{one.warning}")


def remove(flow: str, yes: bool) -> None:
    """Remove a flow that no program has any more, and discard what waits for it. Blocks."""
    with _services() as services:
        store: Any = services.store
        one = _find(known(services.store, services.transport), flow)
        if not one.orphaned and store.fleet.is_staffed(one.app):
            raise ConfigError(
                f"flow {flow} is one that the running workers of app {one.app} have; take it out of the app and start "
                "that, or stop all instances, and ask again"
            )
        if (one.waiting or one.dead) and not yes:
            confirm(f"{one.waiting:,} message(s) and {one.dead:,} dead letter(s) of flow {flow} are discarded")
        _fetch(services, one)
        settled = store.subscribers.remove(flow)
    print(f"{plain(flow)}: removed; {settled.discarded:,} message(s) discarded")


def move(flow: str, heir: str) -> None:
    """Rename a flow, with all that the store and the broker have of it. Blocks."""
    _check_heir(flow, heir)
    with _services() as services:
        store: Any = services.store
        found = known(services.store, services.transport)
        one = _find(found, flow)
        there = next((other.channel for other in found if other.flow == heir and other.channel), one.channel)
        if one.channel and there != one.channel:
            raise ConfigError(
                f"flow {flow} receives from channel {one.channel}, and {heir} from {there}: what waits for the first "
                f"is not what the second expects; let {flow} come to its end in an app that has it, or remove it"
            )
        if not there:
            raise ConfigError(f"neither {flow} nor {heir} is subscribed; start the app that has {heir}, and ask again")
        _refuse_workers(services, {one.app, heir.split(".", 1)[0]}, flow)
        _fetch(services, one._replace(channel=there), heir)
        settled = store.subscribers.move(flow, heir)
    discarded = f"; {settled.discarded:,} of which it has a copy of its own, discarded" if settled.discarded else ""
    print(
        f"{plain(flow)} is {plain(heir)} now: {settled.moved:,} message(s) and {settled.letters:,} dead letter(s) "
        f"moved{discarded}"
    )


def _check_heir(flow: str, heir: str) -> None:
    try:
        check_name("a flow's name", heir)
    except Undecodable as error:
        raise DefinitionError(str(error)) from None
    app, _, short = heir.partition(".")
    if not (app and short) or CANDIDATE in heir or heir.startswith(EXCHANGE) or heir == flow:
        raise ConfigError(f"{plain(heir)} is no new name for flow {plain(flow)}; write the full one: APP.FLOW")


def _refuse_workers(services: Services, apps: Collection[str], flow: str) -> None:
    """Raise ConfigError while workers run that may receive for a flow, or send to it by the broker."""
    store: Any = services.store
    if services.transport.lease:
        apps = {*apps, *(one.app for one in store.ledger.workers())}
    staffed = [app for app in sorted(apps) if store.fleet.is_staffed(app)]
    if staffed:
        raise ConfigError(
            f"workers of app {', '.join(staffed)} run, and may have messages of flow {flow} in hand; stop all "
            "instances, move the flow, and start the new ones"
        )


def _fetch(services: Services, one: Known, heir: str = "") -> None:
    """Move the messages of a flow from the broker to the store. Those of other programs are to be adopted anew, and
    those that were refused are dead letters."""
    store: Any = services.store

    def keep(deliveries: Sequence[Delivery]) -> None:
        adopted = [unread(received(each, one.channel)) if each.foreign else each for each in deliveries]
        store.subscribers.keep(one.flow, adopted, heir)

    services.transport.empty(one.flow, keep)


def _find(found: Sequence[Known], flow: str) -> Known:
    for one in found:
        if one.flow == flow:
            return one
    meant = similar(flow, [one.flow for one in found])
    raise ConfigError(f"no flow {plain(flow)} is in this store{meant}; flowkit subscriptions list names them")


def confirm(what: str) -> None:
    """Ask whether to go on. Raises FlowKitError when the answer is no, and ConfigError where nobody can answer."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{plain(what)}; nothing was done: write --yes if that is meant")
    if input(f"{plain(what)}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise FlowKitError("nothing was done")


@contextmanager
def _services() -> Iterator[Services]:
    services = connect(create=False)
    try:
        yield services
    finally:
        services.close()
