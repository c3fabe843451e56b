"""Clients of RabbitMQ that were cut off together do not come back together."""

import asyncio
import random
import selectors
from bisect import bisect
from collections.abc import Callable, Sequence

import pytest

from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.link import FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS, Link
from flowkit.transports.rabbitmq.servers import servers
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.support.broker_shop import Shop
from tests.support.waiting import wait_until


def test_row_25_clients_that_were_cut_off_together_do_not_come_together(
    rabbitmq_node: RabbitMQ, rabbitmq_url: str, sqlite_url: str
) -> None:
    """Twenty clients, and how their attempts spread; the waits are a random part of a growing bound."""
    with Proxy("127.0.0.1", rabbitmq_node.port) as proxy:
        store = open_store(Settings(database_url=sqlite_url), check=False)
        shop = Shop(sqlite_url, rabbitmq_node.url(proxy.port))
        clients = [shop.connect() for _ in range(20)]
        for client in clients:
            client.transport.declare(["shop.accept"])
        known = len(proxy.arrivals)
        proxy.cut()
        wait_until(lambda: all(client.transport.ready for client in clients) and len(proxy.arrivals) >= known + 40)
        times = sorted(proxy.arrivals[known : known + 40])
        assert times[-1] - times[0] > 0.1, "all came at once"
        for client in clients:
            client.close()
        shop.close()
        store.close()


CLIENTS = 200
WINDOW_SECONDS = 0.1


class Skipping(selectors.DefaultSelector):
    """Waits for nothing: the time of a wait passes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.now += 0 if ready else timeout or 0
        return ready


class Moment(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual."""

    def __init__(self) -> None:
        self._skipping = Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


async def herd(monkeypatch: pytest.MonkeyPatch, away: float, jitter: Callable[[], float]) -> list[float]:
    """When clients that are cut off together try to connect, to a broker that comes back after some time."""
    loop = asyncio.get_running_loop()
    arrivals: list[float] = []
    back = 0.0

    class Connection:
        """What is made for each try."""

        def __init__(self, server: object, *, custom_ioloop: object, **calls: Callable[..., None]) -> None:
            arrivals.append(loop.time())
            self.is_open = loop.time() >= back
            answer = "on_open_callback" if self.is_open else "on_open_error_callback"
            loop.call_soon(calls[answer], self, ConnectionRefusedError())

        def close(self) -> None:
            self.is_open = False

        @property
        def is_closed(self) -> bool:
            return not self.is_open

    async def opened(connection: object) -> None: ...

    monkeypatch.setattr("flowkit.transports.rabbitmq.link.Connection", Connection)
    links = [Link(servers("amqp://127.0.0.1"), jitter, opened, lambda: None) for _ in range(CLIENTS)]
    assert all([await link.ready(1) for link in links])
    arrivals.clear()
    began = loop.time()
    back = began + away
    for link in links:
        link.abandon(link.connection, "cut")
    while len(arrivals) < CLIENTS or not all(link.up.is_set() for link in links):
        await asyncio.sleep(0.01)
    for link in links:
        await link.close()
    return [time - began for time in arrivals]


def busiest(arrivals: Sequence[float]) -> int:
    """The most that come within a window."""
    return max(bisect(arrivals, time + WINDOW_SECONDS) - number for number, time in enumerate(arrivals))


@pytest.mark.parametrize("away", [0, 60])
def test_row_25_two_hundred_clients_stay_below_a_rate(monkeypatch: pytest.MonkeyPatch, away: float) -> None:
    """Each waits for a random part of a bound, the first time and when the broker has been away for a while."""
    with asyncio.Runner(loop_factory=Moment) as runner:
        arrivals = runner.run(herd(monkeypatch, away, random.Random(25).random))
    spread = MOST_WAIT_SECONDS / 2 if away else FIRST_WAIT_SECONDS * 2
    most = busiest([time for time in arrivals if time >= away / 2])
    print(f"{most} of {CLIENTS} clients within {WINDOW_SECONDS} s, {len(arrivals)} tries in all")
    assert most < 2.5 * CLIENTS * WINDOW_SECONDS / spread
