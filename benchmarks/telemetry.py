"""The cost of telemetry: the same work without it, with 1 % of its traces recorded, and with all, alternately."""

from collections.abc import Sequence
from statistics import median

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from benchmarks.cpu import Usage
from benchmarks.database import Database
from benchmarks.work import Order
from benchmarks.worker import FlowKit
from flowkit.telemetry.otel import OpenTelemetry
from flowkit.telemetry.port import OFF, Telemetry

SHARES = {"off": None, "1 %": 0.01, "100 %": 1.0}


class Discard(SpanExporter):
    """A collector that costs nothing: what is measured is the making of spans, and their way to it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def telemetry(database: Database, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """CPU of the worker for each message, in microseconds, by share of traces; ratios are taken within each round.

    A message is handled and sent onward: one span of each kind, and a share of its batch's.
    """
    runs: dict[str, list[float]] = {share: [] for share in SHARES}
    for _ in range(rounds):
        for share, found in runs.items():
            found.append(_run(database, share, count).worker / count * 1e6)
    return {
        share: {
            "worker_cpu_us_per_message": round(median(found), 1),
            "ratio": round(median(mine / base for mine, base in zip(found, runs["off"], strict=True)), 2),
        }
        for share, found in runs.items()
    }


def _run(database: Database, share: str, count: int) -> Usage:
    told = _telemetry(share)
    contender = FlowKit(database.fresh(), "none", told)
    try:
        contender.send([Order(id=number) for number in range(count)])
        usage = contender.run(count)
        contender.check(count)
    finally:
        contender.close()
        told.close()
    return usage


def _telemetry(share: str) -> Telemetry:
    ratio = SHARES[share]
    if ratio is None:
        return OFF
    tracers = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Discard(), max_queue_size=100_000))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    return OpenTelemetry(tracers, meters, "flowkit")
