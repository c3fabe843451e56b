"""Spans and metrics by the OpenTelemetry conventions for messaging (semantic conventions 1.44, in development).

A message carries its trace in the headers `traceparent` and `tracestate` (W3C Trace Context). So the trace continues
through every transport, retry, delay and generation. A handler's run is a child of the message's sending: one
conversation is one trace. Batches have spans of their own, with links to their messages.
"""

import inspect
import os
import threading
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode

from flowkit.disclosure import stack, told
from flowkit.errors import ConfigError
from flowkit.message import Message
from flowkit.ports import REFUSED, Consumer, Dead, Delivery, Outcome
from flowkit.telemetry.port import SIGNALS, C, Telemetry

CLOSE_SECONDS = 5.0
Attributes = dict[str, str | int]


class OpenTelemetry(Telemetry):
    """Reports to the given providers. Thread-safe."""

    on = True

    def __init__(self, tracers: trace.TracerProvider, meters: metrics.MeterProvider, system: str) -> None:
        self._tracers, self._meters = tracers, meters
        self._system = system
        self._operations: dict[tuple[str, str, str], Attributes] = {}
        self._tracer = tracers.get_tracer("flowkit")
        sampler = getattr(tracers, "sampler", None)
        # A message whose sender did not sample its trace needs no span here.
        self._prunes = sampler is not None and "remoteParentNotSampled:AlwaysOffSampler" in sampler.get_description()
        meter = meters.get_meter("flowkit")
        self._processing = meter.create_histogram("messaging.process.duration", "s", "Runs of handlers")
        self._operating = meter.create_histogram("messaging.client.operation.duration", "s", "Receiving and settling")
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages sent")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Messages received")
        self._outcomes = meter.create_counter("flowkit.outcomes", "{message}", "Outcomes of messages")
        self._refused = meter.create_counter("flowkit.refused", "{message}", "Messages that are not what they claim")
        self._reruns = meter.create_counter("flowkit.reruns", "{failure}", "Failures after which a batch ran again")

    def sent(self, message: Message) -> Message:
        if "traceparent" in message.headers:
            return message  # the sender has set the trace
        carrier: dict[str, str] = {}
        current = trace.get_current_span().get_span_context()
        if self._prunes and current.is_valid and not current.trace_flags.sampled:
            carrier["traceparent"] = f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"
        else:
            span = self._tracer.start_span(f"send {message.channel}", kind=SpanKind.PRODUCER)
            if span.is_recording():
                span.set_attributes({**self._operation("send", message.channel), **_of(message)})
            propagate.inject(carrier, trace.set_span_in_context(span))
            span.end()
        self._sent.add(1, self._operation("send", message.channel))
        return message._replace(headers={**message.headers, **carrier})

    def handler(self, call: C) -> C:
        if inspect.iscoroutinefunction(call):

            async def attend(body: object, delivery: Delivery, *others: Any) -> None:
                with self._process(delivery):
                    await call(body, delivery, *others)

            return attend  # type: ignore[return-value]

        def run(body: object, delivery: Delivery, *others: Any) -> None:
            with self._process(delivery):
                call(body, delivery, *others)

        return run  # type: ignore[return-value]

    def consumer(self, consumer: Consumer, flow: str, channel: str) -> Consumer:
        return TracedConsumer(consumer, self, flow, channel)

    def ended(self, flow: str, outcomes: Collection[Outcome | None]) -> None:
        for kind, count in Counter(type(one).__name__.lower() for one in outcomes if one is not None).items():
            self._outcomes.add(count, {"messaging.consumer.group.name": flow, "flowkit.outcome": kind})
        refused = sum(isinstance(one, Dead) and one.reason == REFUSED for one in outcomes)
        if refused:
            self._refused.add(refused, {"messaging.consumer.group.name": flow})

    def rerun(self, flow: str) -> None:
        self._reruns.add(1, {"messaging.consumer.group.name": flow})

    def close(self) -> None:
        def shut_down() -> None:
            for provider in (self._tracers, self._meters):
                if isinstance(provider, TracerProvider | MeterProvider):
                    provider.shutdown()

        # A collector that does not answer must not delay the end of a worker.
        closing = threading.Thread(target=shut_down, name="flowkit-telemetry", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    @contextmanager
    def _process(self, delivery: Delivery) -> Iterator[None]:
        """Trace one run of a handler. Messages that this thread or task sends meanwhile are its children."""
        message, began, failed = delivery.message, time.perf_counter(), ""
        parent, span = self._follow(message)
        token = attach(trace.set_span_in_context(span, parent))
        if span.is_recording():
            span.set_attributes({**self._operation("process", message.channel, delivery.flow), **_of(message)})
        try:
            yield
        except (Exception, CancelledError) as error:  # an `async def` handler is cancelled at its deadline
            failed = type(error).__qualname__
            if span.is_recording():
                # Not `record_exception`: its attributes repeat the data in the error.
                span.add_event(
                    "exception",
                    {
                        "exception.type": failed,
                        "exception.message": told(error),
                        "exception.stacktrace": stack(error),
                    },
                )
                span.set_status(Status(StatusCode.ERROR, told(error)))
                span.set_attribute("error.type", failed)
            raise
        finally:
            detach(token)
            span.end()
            measured = self._operation("process", message.channel, delivery.flow)
            self._processing.record(
                time.perf_counter() - began, {**measured, "error.type": failed} if failed else measured
            )

    def _follow(self, message: Message) -> tuple[Context, Span]:
        """Return the trace context of a message, and a new span for a run of its handler."""
        known = _context(message.headers.get("traceparent", "")) if self._prunes else None
        if known is not None and not known.trace_flags.sampled:
            return Context(), NonRecordingSpan(known)
        parent = propagate.extract(message.headers, Context())
        span = self._tracer.start_span(f"process {message.channel}", parent, SpanKind.CONSUMER)
        return parent, span

    def batch(
        self, operation: str, channel: str, flow: str, deliveries: Sequence[Delivery], since: tuple[int, float]
    ) -> None:
        """Report a batch that was received or settled. `since` is when that began: nanoseconds since the epoch, and
        seconds of `perf_counter`."""
        began, counted = since
        measured = self._operation(operation, channel, flow)
        self._operating.record(time.perf_counter() - counted, measured)
        if operation == "receive":
            self._consumed.add(len(deliveries), measured)
        span = self._tracer.start_span(f"{operation} {channel}", Context(), SpanKind.CLIENT, start_time=began)
        if span.is_recording():
            span.set_attributes({**measured, "messaging.batch.message_count": len(deliveries)})
            for delivery in deliveries:
                known = _context(delivery.message.headers.get("traceparent", ""))
                if known is not None:
                    span.add_link(known)
        span.end()

    def _operation(self, name: str, channel: str, flow: str = "") -> Attributes:
        """Return the attributes that spans and metrics of an operation share. Each call returns the same dict: do not
        change it."""
        found = self._operations.get((name, channel, flow))
        if found is None:
            found = self._operations[name, channel, flow] = {
                "messaging.system": self._system,
                "messaging.operation.name": name,
                "messaging.operation.type": name,
                "messaging.destination.name": channel,
                **({"messaging.consumer.group.name": flow} if flow else {}),
            }
        return found


class TracedConsumer:
    """Implements ports.Consumer: reports what another consumer receives and settles."""

    def __init__(self, consumer: Consumer, telemetry: OpenTelemetry, flow: str, channel: str) -> None:
        self._consumer = consumer
        self._telemetry = telemetry
        self._flow = flow
        self._channel = channel

    @property
    def stocked(self) -> bool:
        return self._consumer.stocked

    def receive(self, limit: int) -> list[Delivery]:
        return self._around("receive", lambda: self._consumer.receive(limit))

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        def settle() -> list[Delivery]:
            self._consumer.settle(deliveries)
            return list(deliveries)

        self._around("settle", settle)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self._consumer.release(deliveries)

    def close(self) -> None:
        self._consumer.close()

    def _around(self, operation: str, act: Callable[[], list[Delivery]]) -> list[Delivery]:
        """Run an operation and report its batch, unless that is empty."""
        since = time.time_ns(), time.perf_counter()
        deliveries = act()
        if deliveries:
            self._telemetry.batch(operation, self._channel, self._flow, deliveries, since)
        return deliveries


def ambient(system: str) -> Telemetry:
    """Return telemetry to the global providers if they are set up; else the one that reports nothing."""
    tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
    if isinstance(tracers, TracerProvider) or isinstance(meters, MeterProvider):
        return OpenTelemetry(tracers, meters, system)
    return Telemetry()


def ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the current span; empty without one."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    return {"trace_id": f"{current.trace_id:032x}", "span_id": f"{current.span_id:016x}"}


def configure(service: str) -> None:
    """Set up the global providers by the environment, with the SDK's own exporters, resource, sampler and limits."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {SERVICE_NAME: service})
    spans, readings = (_exporters(signal) for signal in SIGNALS)
    if spans and not isinstance(trace.get_tracer_provider(), TracerProvider):
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in spans:
            tracers.add_span_processor(BatchSpanProcessor(exporter()))
        trace.set_tracer_provider(tracers)
    if readings and not isinstance(metrics.get_meter_provider(), MeterProvider):
        readers = [
            exporter() if issubclass(exporter, MetricReader) else PeriodicExportingMetricReader(exporter())
            for exporter in readings
        ]
        metrics.set_meter_provider(MeterProvider(readers, resource, shutdown_on_exit=False))


def _exporters(signal: str) -> list[Any]:
    """The classes of the exporters that the environment names for a signal."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    found = []
    for name in os.environ.get(variable, "").split(","):
        if name.strip() in ("", "none"):
            continue
        known = entry_points(group=f"opentelemetry_{signal}_exporter", name=name.strip())
        if not known:
            raise ConfigError(
                f"{variable} is {name.strip()!r}, an exporter that is not installed; pip install "
                f"opentelemetry-exporter-{name.strip()}, or write console or none"
            )
        found.append(next(iter(known)).load())
    return found


def _of(message: Message) -> Attributes:
    return {
        "messaging.message.id": message.id,
        "messaging.message.conversation_id": message.correlation or message.id,
    }


def _context(traceparent: str) -> SpanContext | None:
    """Parse a `traceparent` of version 00; None if it is invalid."""
    try:
        _, trace_id, span_id, flags = traceparent.split("-")
        found = SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return found if found.is_valid else None
