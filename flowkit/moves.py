"""Moves: flows whose subscription is to another channel than their source."""

import logging
from collections.abc import Iterable

from flowkit.model.flow import Flow
from flowkit.ports import EXCHANGE, Store

_log = logging.getLogger("flowkit.app")


def check_moves(store: Store, app: str, flows: Iterable[Flow]) -> None:
    """Find flows of an app that cannot move now: a flow has one channel, and messages that come to the other one would
    go nowhere. Raises DefinitionError. Blocks."""
    recorded = store.subscribers.channels()
    for flow in flows:
        before, now = recorded.get(flow.name, flow.source.name), flow.source.name
        why = _why_stay(store, app, flow.name, before) if before != now else ""
        if why:
            raise flow.wrong(
                f"it moves from channel {before} to channel {now} while {why}; give the flow at {now} another "
                f"name, @app.flow(…, name=…), and keep this one until nothing is sent to {before}; or let it "
                "finish its messages, stop all instances, and start the new ones"
            )
        if before != now and EXCHANGE + before in recorded:
            _log.warning(
                "flow %s: it moves from the shared channel %s to channel %s, and its queue at RabbitMQ stays bound "
                "to exchange %s: messages of other programs to it still reach the flow; unbind the queue",
                flow.name, before, now, before,
            )  # fmt: skip


def _why_stay(store: Store, app: str, flow: str, channel: str) -> str:
    """Why a flow has to stay at a channel; empty if it may go."""
    if store.fleet.is_staffed(app):
        return f"workers of app {app} run, which may receive from {channel}"
    waiting = store.ledger.unfinished([flow])
    return f"{waiting:,} {'message of it waits' if waiting == 1 else 'messages of it wait'}" if waiting > 0 else ""
