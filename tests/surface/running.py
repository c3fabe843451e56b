"""What operators and clients see of an instance: settings, loggers, metrics and HTTP."""

import ast
import contextlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

from .package import Lines, Package, leaves, made, plain

ATTRIBUTE = re.compile(r"(messaging|flowkit|error|exception)(\.[a-z_]+)+")
"""A name that spans and metrics carry."""


def of_settings(package: Package) -> Lines:
    kind = package.named("Settings")
    for name, field in kind.model_fields.items():
        variable = f"{kind.model_config['env_prefix']}{name}".upper()
        bounds = [repr(one) for one in field.metadata]
        yield f"setting {variable}: {plain(' '.join([inspect.formatannotation(field.annotation), *bounds]))}"
        yield f"setting {variable} default: {field.default!r}"
        yield f"setting-text {variable}: {field.description}"


def of_loggers(package: Package) -> Lines:
    for _, tree in package.trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger" and node.args:
                yield f"logger {re.sub('{.*}', '{FLOW}', ast.unparse(node.args[0]).lstrip('f'))}"


def of_prometheus(package: Package, harness: Any) -> Lines:
    """The families of `/metrics`, and the values of their labels for one flow with one message."""
    from prometheus_client.registry import Collector

    kind = package.that(lambda one: Collector in getattr(one, "__bases__", ()))
    for family in made(kind, services=harness.services, worker=harness.worker).collect():
        labels = ", ".join(family._labelnames)
        yield f"prometheus {family.name}: {family.type}, labels {labels}, unit {family.unit!r}"
        yield f"prometheus-text {family.name}: {family.documentation}"
        for sample in family.samples:
            yield f"prometheus {sample.name}: {', '.join(f'{name}={value}' for name, value in sample.labels.items())}"


def of_opentelemetry(package: Package) -> Lines:
    """The instruments, and the names of all attributes of spans and metrics."""
    from opentelemetry.trace import NoOpTracerProvider

    kind, meters = package.named("OpenTelemetry"), MagicMock()
    made(kind, tracers=NoOpTracerProvider(), meters=meters, system="flowkit")
    for what, (name, unit, description), _ in meters.get_meter.return_value.method_calls:
        yield f"opentelemetry {name}: {what.removeprefix('create_')}, unit {unit}"
        yield f"opentelemetry-text {name}: {description}"
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[kind.__module__]))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ATTRIBUTE.fullmatch(node.value):
            yield f"opentelemetry name: {node.value}"


def of_http(package: Package, harness: Any) -> Lines:
    """The endpoints for clients and for operators, and the OpenAPI document of the harness's app."""
    kind = package.named("Ingress")
    ingress = made(kind, app=harness.app, services=harness.services, worker=harness.worker, ready=lambda: "")
    for listener, application in (("clients", ingress.asgi), ("operators", ingress.operators)):
        for route in application.routes:
            yield f"http {listener}: {', '.join(sorted(route.methods))} {route.path}"
    ingress.close()
    for path, value in leaves(package.named("described")(harness.app)):
        yield f"openapi {path}: {value}"


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """A harness with one message that waits."""
    from flowkit.testing import Harness

    from .app import app, channel

    with contextlib.closing(Harness(app)) as harness:
        harness.publish(channel, 1)
        yield harness
