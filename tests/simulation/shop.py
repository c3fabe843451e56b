"""The app of the simulation: orders take effect in three flows. An order's deed says how its handlers behave."""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import App, Objects, Outbox, Reject, RetryPolicy, web
from flowkit.engine.item import Item
from flowkit.errors import FlowKitError
from flowkit.host.supervisor import STOPPED
from flowkit.model.handler import Call
from flowkit.ports import Dead, Delivery, Done, Giver, Identity, Retried
from tests.simulation.world import Process, World
from tests.support.shop import Base, Effect, Unique

APP = "sim"
ATTEMPTS = 12
"""Enough that no run of bad luck kills an innocent suspect so often."""
CALM = RetryPolicy(attempts=ATTEMPTS, first="100ms", factor=1.5, most="1s")
SOONEST_SECONDS = [CALM.delay(attempts, 0.0) for attempts in range(1, ATTEMPTS)]
"""What a retry waits for at least after so many attempts, as long as nobody breaks the policy on purpose."""
DELAY_SECONDS = 1.5
DEADLINE_SECONDS = 2.0
FLAKY = 3
THERE = "there"
"""The name of a row that cannot be written again."""
HOT = "hot"
"""The object that orders count up, in two flows each."""
HOT_SECONDS = 0.1
"""How long that may take."""
IN_ORDER = (0, STOPPED)
"""The exit statuses of workers that gave back what they had."""


class Order(BaseModel):
    name: str
    deed: str = ""


class Deeds:
    """What handlers do of what their orders say; `runs` counts them, as no process could."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runs: Counter[tuple[str, str]] = Counter()
        self.mended = False
        self.ends: Counter[tuple[Identity, int]] = Counter()
        """How often each generation of a message came to an outcome that is no duplicate."""
        self.began: dict[tuple[Identity, int], float] = {}
        """When a handler was called first with each generation of a message."""
        self.charges: Counter[Identity] = Counter()
        """Attempts for a deadline that passed while others ran too, by message."""
        self.solos: dict[Identity, dict[str, Process]] = {}
        """The workers in which a message began to run alone, and nothing came of it there."""
        self.kept: dict[Process, Session] = {}
        """The session of a handler that has returned."""
        self.explode: Callable[[], None] = lambda: None
        """Switches the machine off, with the supervisor."""

    def observe(self, items: Sequence[Item]) -> None:
        """Note what a batch came to."""
        for item in items:
            if isinstance(item.outcome, Done | Retried | Dead):
                identity = item.delivery.identity
                self.ends[identity, item.delivery.generation] += 1
                assert self._world.current is not None
                here = self._world.current.process
                solos = self.solos.get(identity, {}).items()
                self.solos[identity] = {worker: process for worker, process in solos if process is not here}

    def watched(self, call: Call) -> Call:
        """The same call of a handler, which sees whether it comes too early."""

        def called(body: Any, delivery: Delivery, outbox: Outbox, giver: Giver) -> Coroutine[Any, Any, None] | None:
            early = self._due(body, delivery) - self._world.time
            if early > 0:
                name = f"{delivery.flow}, {delivery.message.id}, generation {delivery.generation}"
                self._world.blame(AssertionError(f"{name} ran {early:.3f} s before it was due"))
            return call(body, delivery, outbox, giver)

        return called

    def _due(self, order: Order, delivery: Delivery) -> float:
        """Before that no handler may be called with it: it waits from the first run of what made it wait, or later."""
        identity, generation = delivery.identity, delivery.generation
        now = self._world.time
        self.began.setdefault((identity, generation), now)
        if delivery.attempts:
            cause, wait = (identity, generation - 1), SOONEST_SECONDS[delivery.attempts - 1]
        elif order.deed == "delay" and delivery.flow == "sim.invoice":
            cause, wait = (("sim.accept", "client", order.name), 0), DELAY_SECONDS
        else:
            return now
        return self.began.get(cause, now - wait) + wait

    def killed(self, identity: Identity) -> int:
        """How many processes died in which a message ran alone."""
        return sum(one.status not in (None, *IN_ORDER) for one in self.solos.get(identity, {}).values())

    def before(self, flow: str, order: Order) -> None:
        self.runs[flow, order.name] += 1
        self._world.point("handler", ("kill", "freeze"))
        if order.deed == "slow":
            self._world.sleep(0.3 * self._world.random.random())

    def trespass(self, order: Order, db: Session) -> None:
        """Do with a session what FlowKit has to notice."""
        match order.deed:
            case "swallow":
                db.add_all([Effect(name="of a handler that failed"), Unique(name=THERE)])
                with suppress(IntegrityError):
                    db.flush()
            case "temporary":
                db.execute(text("CREATE TEMP TABLE mine (name TEXT)"))
            case "close":
                driver: Any = db.connection().connection.driver_connection
                driver.close()
            case "keep":
                assert self._world.current is not None
                process = self._world.current.process
                if process in self.kept:
                    with suppress(FlowKitError):
                        self.kept[process].execute(text("INSERT INTO effects (name) VALUES ('after its handler')"))
                self.kept[process] = db

    def count_up(self, objects: Objects) -> None:
        """Count the hot object up, while others want to."""
        count = objects.get(HOT) or 0
        self._world.sleep(HOT_SECONDS * self._world.random.random())
        objects.put(HOT, count + 1)

    def after(self, flow: str, order: Order) -> None:
        match order.deed:
            case "reject":
                raise Reject("refused")
            case "fail":
                raise ValueError("it always fails")
            case "mend" if not self.mended:
                raise ValueError("it fails until somebody mends it")
            case "flaky" if self.runs[flow, order.name] <= FLAKY:
                raise ValueError("it fails now and then")
            case "bomb":
                self.explode()
                self._world.leave()
            case "poison":
                assert self._world.current is not None
                self._world.current.process.kill(9)
                self._world.leave()
            case "hang":
                self._world.sleep(3600)


def new_app(world: World) -> tuple[App, Deeds]:
    """The app, with handlers for one world."""
    app, deeds = App(APP, metadata=Base.metadata), Deeds(world)
    orders = app.channel("orders", Order)
    accepted = app.channel("accepted", Order)
    audited = web.post("/audited", reply=True)

    @app.flow(orders, to=accepted, retry=CALM, deadline=DEADLINE_SECONDS)
    def accept(order: Order, db: Session, objects: Objects, outbox: Outbox) -> Order | None:
        deeds.before("accept", order)
        deeds.trespass(order, db)
        db.add(Effect(name=f"accept {order.name}"))
        if order.deed == "hot":
            deeds.count_up(objects)
            db.execute(text("UPDATE hot SET count = count + 1"))
        deeds.after("accept", order)
        if order.deed == "delay":
            outbox.send(accepted, order, delay=DELAY_SECONDS)
            return None
        return order

    @app.flow(orders, to=audited, retry=CALM, deadline=DEADLINE_SECONDS)
    def audit(order: Order) -> Iterator[Order]:
        deeds.before("audit", order)
        if order.deed in ("flaky", "slow"):
            deeds.after("audit", order)
        yield order
        yield Order(name=f"{order.name}'")

    @app.flow(accepted, retry=CALM)
    def invoice(order: Order, db: Session, objects: Objects) -> None:
        objects.put(f"invoice {order.name}", order.name)
        if order.deed == "hot":
            deeds.count_up(objects)
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": f"invoice {order.name}"})

    @app.flow(audited, retry=CALM)
    def note(order: Order, db: Session) -> str:
        db.add(Effect(name=f"note {order.name}"))
        return order.name

    return app, deeds


DEEDS = (
    "", "", "", "flaky", "slow", "delay", "hot", "reject", "fail", "mend", "poison", "bomb", "hang",
    "swallow", "temporary", "close", "keep",
)  # fmt: skip


def expected(order: Order) -> list[str]:
    """The effects of an order that was accepted, once it is at its end."""
    noted = [f"note {order.name}", f"note {order.name}'"]
    if dies(order):
        return noted
    return [*noted, f"accept {order.name}", f"invoice {order.name}"]


def fails(order: Order) -> int:
    """How often the handlers of an order may fail by themselves."""
    always = dict.fromkeys(("fail", "mend", "swallow", "close"), ATTEMPTS)
    return {"flaky": FLAKY, "reject": 1, **always}.get(order.deed, 0)


def dies(order: Order) -> str:
    """The reason of the dead letter that an order ends as; empty if it is applied."""
    reasons = {"rejected": ("reject",), "failed": ("fail", "swallow", "close"), "crashed": ("poison", "bomb", "hang")}
    return next((reason for reason, deeds in reasons.items() if order.deed in deeds), "")
