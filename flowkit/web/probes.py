"""Probes: the endpoints by which balancers and operators ask how an instance and its fleet do."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint

from flowkit.app import App
from flowkit.engine.worker import Worker
from flowkit.errors import FlowKitError
from flowkit.operations import pending
from flowkit.services import Services
from flowkit.web.metrics import MEDIA, Metrics
from flowkit.web.openapi import described
from flowkit.web.problem import Problem
from flowkit.web.question import Question
from flowkit.web.responses import anonymous, answered, as_json

DOCUMENT_PATH = "/flowkit/openapi.json"


class Probes:
    """Answers for one worker process. `clients` are the endpoints that clients may reach, `operators` those of the
    listener for operators."""

    def __init__(self, app: App, services: Services, worker: Worker, ready: Callable[[], str]) -> None:
        """`ready` says why no requests should come now; empty while they may. Raises DefinitionError."""
        self._flows = list(app.flows)
        self._services = services
        self._worker = worker
        self._ready = ready
        self._metrics = Question("metrics", Metrics(services).text)
        self._backlog = Question("scale", self._pending)
        self._store = Question("checks", self._check_store)
        self._described = described(app)
        live = Endpoint("/livez", self._live, methods=["GET"])
        self.clients = (live, Endpoint("/readyz", self._readiness, methods=["GET"]))
        self.operators = (
            Endpoint(DOCUMENT_PATH, self._document, methods=["GET"]),
            Endpoint("/metrics", self._measurements, methods=["GET"]),
            Endpoint("/scale", self._scale, methods=["GET"]),
            live,
            Endpoint("/readyz", self._detailed, methods=["GET"]),
        )

    def close(self) -> None:
        """Wait for the answers to questions that were asked. Blocks; no request comes any more."""
        for question in (self._metrics, self._backlog, self._store):
            question.close()

    async def _document(self, request: Request) -> Response:
        """Answer with the description of the routes, as OpenAPI."""
        return as_json(self._described, HTTPStatus.OK)

    async def _measurements(self, request: Request) -> Response:
        """The metrics of the fleet."""
        return Response(await answered(self._metrics.answer()), media_type=MEDIA)

    async def _scale(self, request: Request) -> Response:
        """The number of messages that wait for nothing but a worker, for autoscalers."""
        return as_json({"pending": await answered(self._backlog.answer())}, HTTPStatus.OK)

    def _pending(self) -> int:
        return pending.ready(self._services.store, self._services.transport, self._flows)

    async def _live(self, request: Request) -> Response:
        """Whether this process runs. Asks no service."""
        return Response("ok\n", media_type="text/plain")

    async def _readiness(self, request: Request) -> Response:
        """Whether requests should come here now."""
        why = self._ready()
        if why:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why)
        return Response("ok\n", media_type="text/plain")

    async def _detailed(self, request: Request) -> Response:
        """The same; with `?verbose`, also the state of each service, and the reasons."""
        if "verbose" not in request.query_params:
            return await self._readiness(request)
        why, checks = self._ready(), await self._checks()
        if why:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why, **checks)
        return as_json({"status": HTTPStatus.OK, **checks}, HTTPStatus.OK)

    async def _checks(self) -> dict[str, Any]:
        """Describe the services that this instance needs."""
        store = await self._store.answer()
        transport = "takes messages" if self._services.transport.ready else "takes no messages now"
        for flow, why in sorted(self._services.transport.hindered.items()):
            transport += f"; flow {flow} cannot receive: {why}"
        shed = ", ".join(sorted(self._worker.directions.shed))
        rests = ", ".join(f"{name} is {what}" for what, name in self._worker.directions.resting)
        return {
            "store": store,
            "transport": transport,
            "service": "; ".join(filter(None, (f"reduced; shed: {shed}" if shed else "", rests))) or "full",
        }

    def _check_store(self) -> str:
        """How long the store takes to answer, or why it does not. Blocks."""
        began = time.monotonic()
        try:
            self._services.store.now()
        except FlowKitError as error:
            return anonymous(error)
        return f"answered in {(time.monotonic() - began) * 1e3:.1f} ms"
