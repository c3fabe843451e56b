"""Workers whose clocks differ."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from sqlalchemy.orm import Session

from flowkit.engine.worker import Worker
from flowkit.services import Services, SystemClock, connect, open_store
from flowkit.settings import Settings
from tests.support.shop import Base, Effect, Order, effects, new_app
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgresql
HOUR = 3600.0
DELAY_SECONDS = 2.0
LEASE_SECONDS = 2


class Wrong(SystemClock):
    """A clock that is wrong by so many seconds."""

    def __init__(self, by: float) -> None:
        self._by = by

    def now(self) -> float:
        return time.time() + self._by


def services(url: str, wrong: float) -> Services:
    return connect(Settings(database_url=url, lease=LEASE_SECONDS))._replace(clock=Wrong(wrong))


def test_row_44_clocks_that_are_an_hour_wrong_make_nothing_early_and_nothing_twice(postgresql_url: str) -> None:
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    app = new_app()
    orders = app.channel("orders", Order)
    ran: dict[str, float] = {}

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        ran[order.name] = time.monotonic()
        if order.deed == "slow":
            time.sleep(1.5 * LEASE_SECONDS)  # its lease ends meanwhile, if nobody renews it
        db.add(Effect(name=order.name))

    @contextmanager
    def worker(wrong: float) -> Iterator[None]:
        with closing(services(postgresql_url, wrong)) as own:
            made = Worker(app, own)
            thread = threading.Thread(target=made.run)
            thread.start()
            try:
                yield
            finally:
                made.stop()
                thread.join(60)

    with closing(store), worker(HOUR), worker(-HOUR), worker(0), closing(app):
        app.connect(services(postgresql_url, HOUR))
        began = time.monotonic()
        for number in range(20):
            app.publish(orders, Order(name=f"delayed {number}"), delay=f"{DELAY_SECONDS}s")
            app.publish(orders, Order(name=f"at once {number}", deed="" if number else "slow"))
        wait_until(lambda: store.ledger.unfinished(list(app.flows)) == 0)
        assert all(at - began >= DELAY_SECONDS for name, at in ran.items() if name.startswith("delayed"))
        with Session(store.dialect.engine) as session:
            assert effects(session) == dict.fromkeys(ran, 1)
        assert len(ran) == 40
