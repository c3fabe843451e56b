"""Telemetry: one conversation is one trace, whatever carries it; conventions and metrics."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy.orm import Session

import flowkit.services
import flowkit.testing.harness
from examples.shop import flows
from flowkit import Message, RetryPolicy
from flowkit.engine.worker import Worker
from flowkit.ports import REFUSED, Dead, Done
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.telemetry.otel import OpenTelemetry
from flowkit.testing import Harness
from tests.support.shop import Effect, Order, new_app, once
from tests.support.waiting import wait_until


class Collector:
    """What was told, in memory."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = OpenTelemetry(tracers, MeterProvider([self._metrics], shutdown_on_exit=False), "flowkit")

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if span.name.startswith(name)]

    def trace(self) -> list[ReadableSpan]:
        """The spans of messages, which must be one connected trace. Batches have traces of their own."""
        spans = [span for span in self.spans() if span.kind != SpanKind.CLIENT]
        ids = {span.context.span_id for span in spans}
        assert len({span.context.trace_id for span in spans}) == 1, [span.name for span in spans]
        roots = [span for span in spans if span.parent is None]
        assert len(roots) == 1, [span.name for span in roots]
        assert all(span.parent.span_id in ids for span in spans if span.parent is not None)
        return spans

    def measured(self) -> dict[str, list[Any]]:
        """Name -> data points."""
        data = self._metrics.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    """All services that are opened tell to it."""
    made = Collector()
    use(made, monkeypatch)
    return made


def use(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flowkit.services, flowkit.testing.harness):
        monkeypatch.setattr(module, "ambient", lambda system: collector.telemetry)


def names(spans: Sequence[ReadableSpan]) -> list[str]:
    return sorted(span.name for span in spans)


SHOP = [
    "process invoices.issued",
    "process orders.accepted",
    "process orders.received",
    "process stock.reserved",
    "send invoices.issued",
    "send orders.accepted",
    "send orders.received",
    "send stock.reserved",
]
ORDER = flows.Order(id="A1", item="tea", quantity=2, email="someone@example.org")
TEA = flows.Delivery(item="tea", quantity=10, cents=450)


@pytest.mark.parametrize("broker", [False, True], ids=["rows", "broker"])
def test_an_order_of_the_shop_is_one_trace(collector: Collector, database_url: str, broker: bool) -> None:
    with Harness(flows.app, database_url, broker=broker) as harness:
        harness.publish(flows.delivered, TEA)
        harness.until_quiet()
        collector._spans.clear()
        id = harness.publish(flows.received, ORDER)
        harness.until_quiet()
    spans = collector.trace()
    assert names(spans) == SHOP
    assert {dict(span.attributes or {})["messaging.message.conversation_id"] for span in spans} == {id}


@pytest.mark.postgresql
def test_an_order_of_the_shop_is_one_trace_through_rabbitmq(
    collector: Collector, postgresql_url: str, rabbitmq_url: str
) -> None:
    settings = Settings(database_url=postgresql_url, broker_url=rabbitmq_url)
    store = open_store(settings, check=False)
    store.schema.upgrade()
    flows.Base.metadata.create_all(store.dialect.engine)
    store.close()
    services = connect(settings)
    worker = Worker(flows.app, services)
    flows.app.publish(flows.delivered, TEA)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: services.store.ledger.unfinished(list(flows.app.flows)) == 0)
        collector._spans.clear()
        flows.app.publish(flows.received, ORDER)
        wait_until(lambda: services.store.ledger.unfinished(list(flows.app.flows)) == 0)
    finally:
        worker.stop()
        thread.join(60)
        flows.app.close()
    assert names(collector.trace()) == SHOP


def test_a_retry_and_a_replay_stay_in_their_trace(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_FLAKY_MAIL", "1")
    with Harness(flows.app) as harness:
        harness.publish(flows.received, ORDER)
        harness.until_quiet()
        (letter,) = harness.dead()  # out of stock
        failed = collector.spans("process orders.accepted")
        harness.publish(flows.delivered, TEA)
        harness.until_quiet()
        harness.store.dead_letters.retry([letter.letter])
        harness.until_quiet()
        for _ in range(3):
            harness.advance("1s")
        assert harness.balances()["shop.mail"].applied == 1
    (span,) = failed
    assert span.status.status_code == StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "Reject"
    assert span.events[0].name == "exception"
    tried = collector.spans("process invoices.issued")
    assert [span.status.status_code for span in tried] == [StatusCode.ERROR, StatusCode.UNSET]
    assert len({one.context.trace_id for one in (*failed, *tried)}) == 1


def test_async_handlers_have_spans_of_their_own(collector: Collector) -> None:
    app = new_app()
    first, second = app.channel("first", Order), app.channel("second", Order)
    seen: dict[str, str] = {}

    @app.flow(first, to=second)
    async def pass_on(order: Order) -> Order:
        await asyncio.sleep(0.001)
        seen[order.name] = f"{trace.get_current_span().get_span_context().trace_id:032x}"
        return order

    @app.flow(second)
    async def end(order: Order, message: Message) -> None:
        assert message.headers["traceparent"].split("-")[1] == seen[order.name]

    with Harness(app) as harness:
        for name in ("a", "b", "c"):
            harness.publish(first, Order(name=name))
        harness.until_quiet()
        assert not harness.dead()
    assert len(set(seen.values())) == 3
    assert len(collector.spans("process")) == 6
    for trace_id in seen.values():
        spans = [one for one in collector.spans() if f"{one.context.trace_id:032x}" == trace_id]
        assert names(spans) == ["process first", "process second", "send first", "send second"]


def test_a_run_that_is_cancelled_at_its_deadline_is_an_error(collector: Collector) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, deadline="20ms", retry=RetryPolicy(attempts=1))
    async def hang(order: Order) -> None:
        await asyncio.sleep(3600)

    with Harness(app) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert harness.dead()[0].error.startswith("DeadlinePassed")
    (span,) = collector.spans("process orders")
    assert span.status.status_code == StatusCode.ERROR
    (point,) = collector.measured()["messaging.process.duration"]
    assert point.attributes["error.type"] == dict(span.attributes or {})["error.type"] == "CancelledError"


def test_spans_follow_the_conventions(collector: Collector) -> None:
    with Harness(flows.app) as harness:
        harness.publish(flows.delivered, TEA)
        id = harness.publish(flows.received, ORDER)
        harness.until_quiet()
    (run,) = collector.spans("process orders.received")
    assert run.kind == SpanKind.CONSUMER
    assert dict(run.attributes or {}) == {
        "messaging.system": "flowkit",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders.received",
        "messaging.consumer.group.name": "shop.accept",
        "messaging.message.id": id,
        "messaging.message.conversation_id": id,
    }
    (sent,) = collector.spans("send orders.received")
    assert sent.kind == SpanKind.PRODUCER
    for name in ("receive", "settle"):
        (batch,) = collector.spans(f"{name} orders.received")
        assert batch.kind == SpanKind.CLIENT
        assert batch.parent is None
        assert dict(batch.attributes or {})["messaging.batch.message_count"] == 1
        assert [link.context.trace_id for link in batch.links] == [sent.context.trace_id]


def test_metrics_follow_the_conventions(collector: Collector) -> None:
    with Harness(flows.app) as harness:
        harness.publish(flows.received, ORDER)
        harness.until_quiet()
    measured = collector.measured()
    received = {"messaging.destination.name": "orders.accepted", "messaging.consumer.group.name": "shop.reserve"}
    for name in ("messaging.process.duration", "messaging.client.consumed.messages"):
        (point,) = [one for one in measured[name] if received.items() <= dict(one.attributes).items()]
        assert getattr(point, "count", None) == 1 or point.value == 1
        if name == "messaging.process.duration":
            assert point.attributes["error.type"] == "Reject"
            assert 0 < point.sum < 60, "seconds"
    assert {one.attributes["messaging.destination.name"] for one in measured["messaging.client.sent.messages"]} == {
        "orders.received",
        "orders.accepted",
    }
    operations = {one.attributes["messaging.operation.name"] for one in measured["messaging.client.operation.duration"]}
    assert operations == {"receive", "settle"}
    outcomes = {
        (one.attributes["messaging.consumer.group.name"], one.attributes["flowkit.outcome"]): one.value
        for one in measured["flowkit.outcomes"]
    }
    assert outcomes == {("shop.accept", "done"): 1, ("shop.reserve", "dead"): 1}


def test_messages_that_are_not_what_they_claim_are_counted() -> None:
    collector = Collector()
    collector.telemetry.ended("shop.accept", [Done(), Dead(REFUSED), Dead("failed"), Dead(REFUSED), None])
    (point,) = collector.measured()["flowkit.refused"]
    assert (point.value, point.attributes["messaging.consumer.group.name"]) == (2, "shop.accept")


def test_failures_after_which_a_batch_runs_again_are_counted(collector: Collector) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            raise ValueError("no")

    with Harness(app) as harness:
        for name in ("a", "b", "c"):
            harness.publish(orders, Order(name=name, deed="x" if name == "b" else ""))
        harness.until_quiet()
        once(harness, "a", "c")
    (point,) = collector.measured()["flowkit.reruns"]
    assert (point.value, point.attributes["messaging.consumer.group.name"]) == (1, "shop.accept")


def test_what_is_not_sampled_is_not_recorded_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(ParentBased(ALWAYS_OFF))
    use(collector, monkeypatch)
    with Harness(flows.app) as harness:
        harness.publish(flows.delivered, TEA)
        harness.publish(flows.received, ORDER)
        harness.until_quiet()
        traces = {message.headers["traceparent"] for _, message, _ in harness.outcomes if message.type != "Delivery"}
    assert collector.spans() == []
    assert {int(one[-2:], 16) & 1 for one in traces} == {0}
    assert len({one.split("-")[1] for one in traces}) == 1, "the decision is one for the whole trace"


def test_a_trace_from_outside_goes_on(collector: Collector) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    app = new_app()
    orders = app.channel("orders", Order)
    app.flow(orders, name="end")(lambda order: None)
    with Harness(app, broker=True) as harness:
        body = Order(name="a").model_dump_json().encode()
        harness.broker.deliver("shop.end", Message("1", "erp", "", body, headers={"traceparent": given}))
        harness.broker.deliver("shop.end", Message("2", "erp", "", body, headers={"traceparent": "no such thing"}))
        harness.publish(orders, Order(name="b"), headers={"traceparent": given})
        harness.until_quiet()
    found = [f"{span.context.trace_id:032x}" for span in collector.spans("process")]
    assert found.count(given.split("-")[1]) == 2
    assert len(found) == 3
