"""The answer to `/metrics` in Prometheus' format: the state of the whole fleet, from the store.

Every instance gives the same answer, so that any of the processes behind one socket may be asked.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flowkit.operations import pending
from flowkit.operations.store import operated
from flowkit.services import Services

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
ENDS = ("accepted", "applied", "dead", "discarded", "expired")


class Metrics(Collector):
    """The ledger, the backlog and the fleet as metrics. Thread-safe."""

    def __init__(self, services: Services) -> None:
        self._store = operated(services.store)
        self._transport = services.transport
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """All metrics, read now. Blocks. Raises StoreUnavailable and BrokerUnavailable."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """No metrics: registering a collector must not read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        ledger = self._store.ledger
        balances = {flow: one for flow, one in ledger.balances().items() if flow}
        messages = CounterMetricFamily(
            "flowkit_messages", "Messages of a flow, by what became of them", labels=["flow", "outcome"]
        )
        letters = GaugeMetricFamily("flowkit_dead_letters", "Dead letters that are there", labels=["flow"])
        for flow, balance in balances.items():
            for end in ENDS:
                messages.add_metric([flow, end], getattr(balance, end))
            letters.add_metric([flow], balance.letters)
        backlog = GaugeMetricFamily("flowkit_backlog", "Messages that wait, or are at work", labels=["flow", "state"])
        oldest = GaugeMetricFamily("flowkit_oldest_seconds", "The age of the oldest of them", labels=["flow"])
        waiting = pending.waiting(ledger, self._transport, balances)
        for flow, rows in waiting.rows.items():
            for state in ("due", "leased", "delayed", "parked"):
                backlog.add_metric([flow, state], getattr(rows, state))
            oldest.add_metric([flow], rows.oldest or 0.0)
        for flow, many in waiting.queued.items():
            backlog.add_metric([flow, "queued"], many)
        workers = GaugeMetricFamily("flowkit_workers", "Worker processes", labels=["app", "group", "version", "state"])
        fleet = Counter((one.app, one.group, one.version, one.state.partition(":")[0]) for one in ledger.workers())
        for labels, many in sorted(fleet.items()):
            workers.add_metric(labels, many)
        directions = GaugeMetricFamily("flowkit_directions", "What the fleet is directed to", labels=["what", "name"])
        for direction, value in sorted(self._store.directions.read().items()):
            directions.add_metric(direction, value)
        yield from (messages, letters, backlog, oldest, workers, directions)
