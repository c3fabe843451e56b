"""The app whose handlers say much, for tests in which nobody reads it."""

import sys

from sqlalchemy.orm import Session

from flowkit import Logger, RetryPolicy
from tests.support.shop import Effect, Order, new_app

MUCH = "x" * 2000

app = new_app("talk")
words = app.channel("words", Order)
shouts = app.channel("shouts", Order)


@app.flow(words)
def say(order: Order, db: Session, log: Logger) -> None:
    log.info("%s %s", order.name, MUCH)
    db.add(Effect(name=order.name))


@app.flow(shouts, deadline="1s", retry=RetryPolicy(attempts=1))
def shout(order: Order) -> None:
    for _ in range(1000):
        print(order.name, MUCH, file=sys.stderr)
