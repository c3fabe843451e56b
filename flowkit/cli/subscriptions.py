"""`flowkit subscriptions`: list the subscribed flows, and move or remove those that are in no app any more."""

from flowkit import duration
from flowkit.cli import show
from flowkit.cli.opened import opened_services
from flowkit.cli.question import confirm
from flowkit.operations import subscriptions
from flowkit.operations.store import operated
from flowkit.plain import plain


def show_list(json: bool) -> None:
    """List the subscriptions."""
    with opened_services() as services:
        found = subscriptions.known(operated(services.store), services.transport)
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
                duration.ago(one.silent),
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
    """Remove a flow that no running app has, and discard its pending messages and dead letters. Blocks."""
    with opened_services() as services:
        store, transport = operated(services.store), services.transport
        one = subscriptions.removable(store, transport, flow)
        if (one.waiting or one.dead) and not yes:
            confirm(f"{one.waiting:,} message(s) and {one.dead:,} dead letter(s) of flow {flow} are discarded")
        settled = subscriptions.remove(store, transport, one)
    print(f"{plain(flow)}: removed; {settled.discarded:,} message(s) discarded")


def move(flow: str, heir: str) -> None:
    """Rename `flow` to `heir`, with its messages in the store and at the broker. Blocks."""
    with opened_services() as services:
        settled = subscriptions.move(operated(services.store), services.transport, flow, heir)
    discarded = f"; {settled.discarded:,} of which it has its own copy, discarded" if settled.discarded else ""
    print(
        f"{plain(flow)} is {plain(heir)} now: {settled.moved:,} message(s) and {settled.letters:,} dead letter(s) "
        f"moved{discarded}"
    )
