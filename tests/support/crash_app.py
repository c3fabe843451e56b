"""The app that the crash tests run in worker processes. It kills itself at the boundaries that its orders name.

CRASH_DIR holds one file for each kill to come, named `step.when`, with a number behind it; who removes a file dies.
`runs` there gets a line for each run of a handler.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from flowkit import RetryPolicy
from flowkit.engine.lane import Lane
from flowkit.engine.pipeline import Pipeline
from flowkit.engine.relay import Relay
from flowkit.transports.rabbitmq.sender import Sender
from tests.support.shop import Effect, Order, new_app

FOLDER = Path(os.environ.get("CRASH_DIR", "."))
STEPS = ("decode", "claim", "handle", "stage", "commit", "settle", "publish")
BROKER_STEPS = ("relay", "send", "confirm", "remove")
"""Where messages hop: the relay's round, a publish with its confirms, the use of a confirm, removing the rows."""

app = new_app("crash")
orders = app.channel("orders", Order)
accepted = app.channel("accepted", Order)
invoiced = app.channel("invoiced", Order)


dying = threading.Lock()


def perhaps_die(where: str) -> None:
    with dying:
        for file in FOLDER.glob(f"{where}.*"):
            try:
                file.unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)


def watched(step: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def around(self: object, *arguments: Any, **options: Any) -> Any:
        perhaps_die(f"{step}.before")
        result = method(self, *arguments, **options)
        perhaps_die(f"{step}.after")
        return result

    return around


if FOLDER.name == "kills":
    for name in STEPS:
        setattr(Pipeline, name, watched(name, getattr(Pipeline, name)))
    Lane.step = watched("lane", Lane.step)  # type: ignore[method-assign]
    Relay.step = watched("relay", Relay.step)  # type: ignore[method-assign]
    Relay.flush = watched("remove", Relay.flush)  # type: ignore[method-assign]
    Sender.send = watched("send", Sender.send)  # type: ignore[method-assign]
    Sender._answered = watched("confirm", Sender._answered)  # type: ignore[method-assign]


def ran(flow: str, order: Order) -> None:
    with (FOLDER / "runs").open("a") as file:
        file.write(f"{flow} {order.name}\n")


@app.flow(orders, to=accepted)
def accept(order: Order, db: Session) -> Order:
    ran("accept", order)
    perhaps_die("inside.accept")
    if order.deed == "crash":
        os._exit(9)
    if order.deed == "sleep":
        time.sleep(0.02)
    db.add(Effect(name=f"accept {order.name}"))
    return order


@app.flow(accepted, to=invoiced)
def pass_on(order: Order) -> Order:
    perhaps_die("inside.pass")
    return order


@app.flow(invoiced)
def invoice(order: Order, db: Session) -> None:
    db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": f"invoice {order.name}"})


poison = app.channel("poison", Order)


@app.flow(poison, retry=RetryPolicy(attempts=5, first="10ms", jitter=0))
def drink(order: Order, db: Session) -> None:
    if order.deed == "host":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if order.deed:
        os._exit(int(order.deed))
    db.add(Effect(name=f"drink {order.name}"))


hanging = app.channel("hanging", Order)


@app.flow(hanging, deadline="500ms", retry=RetryPolicy(attempts=2, first="10ms", jitter=0))
def hang(order: Order, db: Session) -> None:
    db.add(Effect(name=f"hang {order.name}"))
    if order.deed == "hang":
        db.flush()
        time.sleep(3600)
