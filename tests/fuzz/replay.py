"""Sends a corpus through a transport to the real app, in a real worker process if the transport allows it."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from flowkit import App
from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.fuzz import amqp, memory, rows
from tests.fuzz.app import make
from tests.fuzz.corpus import Door, Input, Raw
from tests.fuzz.host import Host, wait
from tests.fuzz.oracle import Told, Verdict, identities, judge, refusal
from tests.support.shop import Base

CALLERS = 8
STALL_SECONDS = 45.0
"""Nothing came to its end for so long: it hangs."""
GOOD_SECONDS = 15.0
GOOD = Door("orders", {"name": "good"}, {"id": "the-good-one"}, "applied", "door good")
"""A plain message after the corpus."""
ROUNDS = 50


class Result(NamedTuple):
    """What came of a replay."""

    verdict: Verdict
    put_seconds: float
    seconds: float
    """Until everything had its end."""
    good_seconds: float
    """From the publish of a plain message, after everything, until it took effect."""


def in_memory(inputs: Sequence[Input]) -> Result:
    """Through a broker in memory, in this process: an error that escapes ends it."""
    began = time.monotonic()
    app = make(shared=False)
    with Harness(app, broker=True) as harness:
        told = [memory.put(harness.broker, one) if isinstance(one, Raw) else publish(app, one) for one in inputs]
        placed = time.monotonic()
        rest(harness)
        rested = time.monotonic()
        told.append(publish(app, GOOD))
        harness.until_quiet()
        done = time.monotonic()
        verdict = judge(harness.store, [*inputs, GOOD], told, harness.broker.depths(app.flows))
    return Result(verdict, placed - began, rested - began, done - rested)


def rest(harness: Harness) -> None:
    """Until nothing waits, not for a retry either."""
    for _ in range(ROUNDS):
        harness.advance("1s")
        if not any(one.pending for one in harness.balances().values()):
            return


def in_process(inputs: Sequence[Input], folder: Path, url: str, broker_url: str = "") -> Result:
    """Through a database, and a broker if one is named, by a worker process under its supervisor."""
    store: Any = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    with store.transaction() as unit:  # or no forged envelope would be read: none is signed
        unit.write("INSERT INTO flowkit_meta (name, value) VALUES ('unsigned', '')", [()])
    store.close()
    app = make(shared=bool(broker_url))
    services = connect(Settings(database_url=url, broker_url=broker_url))
    app.connect(services)
    with closing(app), closing(Host(folder / "log", url, broker_url)) as host:
        return _replay(inputs, app, services, host)


def _replay(inputs: Sequence[Input], app: App, services: Services, host: Host) -> Result:
    store: Any = services.store
    host.started(lambda: any(worker.state == "ready" for worker in store.ledger.workers()))
    began = time.monotonic()
    told = put(app, services, inputs)
    placed = time.monotonic()
    host.faults += wait_for_rest(services, app, len(identities(inputs, told)))
    rested = time.monotonic()
    told.append(publish(app, GOOD))
    effect = f'["fuzz.accept", "fuzz", "{GOOD.options["id"]}", %'
    if not wait(lambda: _took_effect(store, effect), GOOD_SECONDS):
        host.faults.append(f"a plain message after the corpus did not take effect in {GOOD_SECONDS:g} s")
    done = time.monotonic()
    host.stop()
    verdict = judge(store, [*inputs, GOOD], told, services.transport.depths(app.flows))
    verdict.faults.extend(host.faults)
    return Result(verdict, placed - began, rested - began, done - rested)


def put(app: App, services: Services, inputs: Sequence[Input]) -> list[Told]:
    """Hand in everything: the doors by many callers at once. What each was told, in the order of the inputs."""
    raws = [one for one in inputs if isinstance(one, Raw)]
    with ThreadPoolExecutor(CALLERS) as callers:
        doors = callers.map(lambda one: publish(app, one), [one for one in inputs if isinstance(one, Door)])
        past = iter(_put_raws(services, raws))
        return [next(past) if isinstance(one, Raw) else next(doors) for one in inputs]


def _put_raws(services: Services, raws: Sequence[Raw]) -> list[Told]:
    store: Any = services.store
    if not services.settings.broker_url:
        return rows.put(store, raws)
    told = [Told()] * len(raws)

    def send(first: int) -> None:
        with closing(amqp.Sender(services.settings.broker_url, store.identity())) as sender:
            told[first::CALLERS] = [sender.put(one) for one in raws[first::CALLERS]]

    with ThreadPoolExecutor(CALLERS) as senders:
        list(senders.map(send, range(CALLERS)))
    return told


def publish(app: App, door: Door) -> Told:
    """Through the public door."""
    try:
        return Told(app.publish(door.channel, door.value, **door.options))
    except Exception as error:
        return refusal(error, door.channel)


def wait_for_rest(services: Services, app: App, expected: int) -> list[str]:
    """Until so many have their end and nothing waits. Says what hangs, if nothing moves for long."""
    store: Any = services.store
    seen: object = None
    since = time.monotonic()
    while True:
        balances = store.ledger.balances()
        depths = services.transport.depths(app.flows)
        ended = sum(one.ended for one in balances.values())
        pending = sum(one.pending for one in balances.values()) + sum(depths.values())
        if ended >= expected and not pending:
            return []
        if (ended, pending) != seen:
            seen, since = (ended, pending), time.monotonic()
        if time.monotonic() - since > STALL_SECONDS:
            return [f"it hangs: {ended} of {expected} have their end, {pending} wait, at the broker {dict(depths)}"]
        time.sleep(0.1)


def _took_effect(store: Any, effect: str) -> bool:
    marker = "%s" if store.dialect.name == "postgresql" else "?"
    with store.unit("") as unit:
        return bool(unit.read(f"SELECT 1 FROM effects WHERE name LIKE {marker}", (effect,)))
