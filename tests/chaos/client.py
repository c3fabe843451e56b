"""A client under chaos: python -m tests.chaos.client NAME LOG

For each line of its input, a number, it publishes that many orders. LOG gets a line `NAME DEED OUTCOME TIME`
for each order, synced to disk. The outcome is ok, fail (nothing was accepted) or unknown.
"""

import os
import random
import sys
import time
from pathlib import Path

from flowkit import FlowKitError, OutcomeUnknown
from tests.chaos.app import DEEDS, app, orders
from tests.support.shop import Order

PATIENCE_SECONDS = 90.0
GIVES_UP = 0.05
"""How often a client leaves it at the first answer that is no ok."""


def publish(batch: list[Order], drawn: random.Random) -> str:
    """Publish these; again under the same ids where it must be or may be so. Returns what the client knows then."""
    end = time.monotonic() + PATIENCE_SECONDS
    unknown = False
    while True:
        try:
            app.publish_many(orders, batch, ids=[order.name for order in batch])
            return "ok"
        except OutcomeUnknown:
            unknown = True
        except FlowKitError as error:
            print(f"not accepted: {error}", file=sys.stderr)
        if drawn.random() < GIVES_UP or time.monotonic() > end:
            return "unknown" if unknown else "fail"
        time.sleep(0.2 * drawn.random())


def deed(drawn: random.Random) -> str:
    return drawn.choices(list(DEEDS), list(DEEDS.values()))[0]


def main(name: str, log: Path) -> None:
    drawn, published = random.Random(name), 0
    with log.open("a") as file:
        for line in sys.stdin:
            last = published + int(line)
            while published < last:
                size = min(drawn.randint(1, 10), last - published)
                batch = [Order(name=f"{name}-{published + one}", deed=deed(drawn)) for one in range(size)]
                published += size
                outcome = publish(batch, drawn)
                file.writelines(f"{order.name} {order.deed or '-'} {outcome} {time.time()}\n" for order in batch)
                file.flush()
                os.fsync(file.fileno())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
