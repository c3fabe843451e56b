"""The app under fuzz: flows of every kind, which record their arguments in their own transaction."""

import hashlib
import json
import os
from typing import Any

from sqlalchemy.orm import Session

from flowkit import App, Message, Reject, RetryPolicy, UnitOfWork
from tests.support.shop import Effect, Order, new_app

RETRY = RetryPolicy(attempts=2, first="10ms", jitter=0)


def digest(body: bytes) -> str:
    """What tells one body from the others."""
    return hashlib.sha256(body).hexdigest()


def note(flow: str, message: Message) -> Effect:
    """The effect of a message: all that the oracle asks for."""
    return Effect(name=json.dumps([flow, message.source, message.id, message.channel, digest(message.body)]))


def perhaps_fail(order: Order) -> None:
    if order.deed == "fail":
        raise RuntimeError("as ordered")
    if order.deed == "reject":
        raise Reject("as ordered")


def make(shared: bool) -> App:
    """The app; `shared`: other programs meet it at a broker."""
    app = new_app("fuzz")

    @app.flow(app.channel("orders", Order), retry=RETRY)
    def accept(order: Order, message: Message, db: Session) -> None:
        db.add(note("fuzz.accept", message))
        perhaps_fail(order)

    @app.flow(app.channel("parcels", Order), retry=RETRY)
    async def deliver(order: Order, message: Message, work: UnitOfWork) -> None:
        perhaps_fail(order)
        await work.run(lambda db, outbox: db.add(note("fuzz.deliver", message)))

    @app.flow(app.channel("events", Order, shared=shared), retry=RETRY)
    def meet(order: Order, message: Message, db: Session) -> None:
        perhaps_fail(order)
        db.add(note("fuzz.meet", message))

    @app.flow(app.channel("anything"), retry=RETRY)
    def take(value: Any, message: Message, db: Session) -> None:
        db.add(note("fuzz.take", message))

    @app.flow(app.channel("texts", str), retry=RETRY)
    def read(text: str, message: Message, db: Session) -> None:
        db.add(note("fuzz.read", message))

    @app.flow(app.channel("blobs", bytes), retry=RETRY)
    def keep(blob: bytes, message: Message, db: Session) -> None:
        db.add(note("fuzz.keep", message))

    return app


app = make(shared=bool(os.environ.get("FLOWKIT_BROKER_URL")))
