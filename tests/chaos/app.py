"""The app under chaos. An order is accepted, then invoiced, and audited by an `async def` flow, which sends it on.

CHAOS_DIR gets a file for each process, with a line for each run of a handler, and one for each that failed as ordered.
"""

import asyncio
import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import FlowKitError, Message, Objects, Outbox, Reject, RetryPolicy
from tests.shop import Effect, Order, new_app

# A worker that is killed while a suspect runs alone in it costs that one an attempt: many are killed here.
RETRY = RetryPolicy(attempts=100, first="50ms", factor=1)
STAGES = ("accept", "invoice", "audit")
FAILED = "failed"

app = new_app("chaos")
orders = app.channel("orders", Order)
accepted = app.channel("accepted", Order)
audited = app.channel("audited", Order)


def ran(flow: str, order: Order) -> None:
    """Note a run."""
    note(f"{flow} {order.name}")


def note(line: str) -> None:
    """One write, which a kill does not tear."""
    path = Path(os.environ["CHAOS_DIR"]) / f"runs-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


SLOW_SECONDS = 0.03


def perhaps_fail(order: Order) -> None:
    if order.deed == "fail" and random.random() < 0.5:
        note(FAILED)
        raise RuntimeError("one of the failures that pass")


def trespass(order: Order, db: Session) -> None:
    """Do with a session what must reach no other message."""
    match order.deed:
        case "swallow" if random.random() < 0.5:
            note(FAILED)
            for _ in range(2):
                with suppress(IntegrityError):  # the second: the handler goes on, and must not count
                    db.execute(text("INSERT INTO uniques (name) VALUES (:name)"), {"name": order.name})
        case "close" if random.random() < 0.5:
            note(FAILED)
            driver: Any = db.connection().connection.driver_connection
            driver.close()
        case "fork":
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)


class Left(threading.local):
    """The session that the last handler of this thread left to a thread of its own."""

    session: Session | None = None


left = Left()


def write_late(db: Session) -> None:
    """Write as a thread does that a handler left behind, while the next handler has the connection."""
    with suppress(FlowKitError):
        db.execute(text("INSERT INTO effects (name) VALUES ('late nobody -')"))


def see_a_neighbour(db: Session) -> bool:
    """Whether what another message has set is seen. Sets it."""
    if db.connection().dialect.name == "sqlite":
        seen = db.scalar(text("SELECT count(*) FROM temp.sqlite_master WHERE name = 'mine'"))
        db.execute(text("CREATE TEMP TABLE IF NOT EXISTS mine (name TEXT)"))
    else:
        seen = db.scalar(text("SELECT coalesce(current_setting('chaos.mine', true), '') <> ''"))
        db.execute(text("SET chaos.mine = 'set'"))
    return bool(seen)


@app.flow(orders, to=accepted, retry=RETRY)
def accept(order: Order, message: Message, db: Session) -> Order:
    ran("accept", order)
    if order.deed == "reject":
        raise Reject("as ordered")
    db.add(Effect(name=f"accept {order.name} {message.id}"))
    trespass(order, db)
    if order.deed == "slow":
        time.sleep(SLOW_SECONDS)
    perhaps_fail(order)
    if left.session is not None:
        late = threading.Thread(target=write_late, args=(left.session,))
        late.start()
        late.join()
    left.session = db if order.deed == "leave" else None
    return order


@app.flow(accepted, retry=RETRY)
def invoice(order: Order, message: Message, db: Session) -> None:
    ran("invoice", order)
    if order.deed == "slow":
        time.sleep(SLOW_SECONDS)
    db.add(Effect(name=f"invoice {order.name} {message.id}"))
    perhaps_fail(order)


@app.flow(accepted, to=audited, retry=RETRY)
async def audit(order: Order, objects: Objects, outbox: Outbox) -> None:
    ran("audit", order)
    objects.put(f"audit {order.name}", order.deed)
    outbox.send(audited, order)
    await asyncio.sleep(10 * SLOW_SECONDS if order.deed == "slow" else 0)
    perhaps_fail(order)


@app.flow(audited, retry=RETRY)
def record(order: Order, message: Message, db: Session) -> None:
    ran("record", order)
    if order.deed == "set" and see_a_neighbour(db):
        db.add(Effect(name=f"seen {order.name} {message.id}"))
    db.add(Effect(name=f"audit {order.name} {message.id}"))
