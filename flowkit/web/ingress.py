"""The ingress: one HTTP endpoint for each route of an app. A request is a message, and answered when that is stored."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint

from flowkit.app import App
from flowkit.config import Services
from flowkit.engine.worker import Worker
from flowkit.errors import (
    BrokerUnavailable,
    FlowKitError,
    OutcomeUnknown,
    Reused,
    StoreConflict,
    TooLarge,
    Unavailable,
    Undecodable,
)
from flowkit.flow import Flow, Outgoing, compose
from flowkit.message import digest, is_name
from flowkit.operations import pending
from flowkit.ports import Asked
from flowkit.publisher import Publisher
from flowkit.route import Arguments, Route, source_of
from flowkit.web.bucket import Buckets, client
from flowkit.web.content import JSON, Budget, Share, receive
from flowkit.web.gate import Full, Gate
from flowkit.web.identity import KEY, identifying, identity, principal
from flowkit.web.metrics import MEDIA, Metrics
from flowkit.web.openapi import described
from flowkit.web.problem import RETRY_SECONDS, Problem
from flowkit.web.question import Question
from flowkit.web.reader import Reader
from flowkit.web.replies import Replies
from flowkit.web.status import PATH, Status

DOCUMENT_PATH = "/flowkit/openapi.json"
T = TypeVar("T")
_log = logging.getLogger("flowkit.http")


class Ingress:
    """Serves the routes of an app, on services of its own process.

    `asgi` is the ASGI application for clients, `operators` the one for operators: they have listeners of their own.
    """

    def __init__(self, app: App, services: Services, worker: Worker, ready: Callable[[], str]) -> None:
        """`worker` is that of this process. `ready` says why no requests should come now; empty while they may. Raises
        DefinitionError."""
        self._app = app
        self._services = services
        self._ready = ready
        self._worker = worker
        self._context = app.context(services)
        self._gate = Gate(Publisher(services.store, self._context))
        self._budget = Budget()
        self._reader = Reader(app.flows)
        self._replies = Replies(partial(services.store.answers.replies, app.name))
        self._status = Status(app, services.store)
        self._metrics = Question("metrics", Metrics(services).text)
        self._backlog = Question("scale", self._pending)
        self._store = Question("checks", self._check_store)
        self._optional = frozenset(name for name, channel in app.channels.items() if channel.optional)
        self._described = described(app)
        endpoints = {flow.source.name: self._endpoint(flow) for flow in app.flows.values() if flow.request}
        self.asgi = _application(
            *endpoints.values(),
            Endpoint(PATH + "{id:path}", self._tell_status, methods=["GET"]),
            Endpoint("/livez", self._live, methods=["GET"]),
            Endpoint("/readyz", self._readiness, methods=["GET"]),
        )
        self.operators = _application(
            Endpoint(DOCUMENT_PATH, self._document, methods=["GET"]),
            Endpoint("/metrics", self._measurements, methods=["GET"]),
            Endpoint("/scale", self._scale, methods=["GET"]),
            Endpoint("/livez", self._live, methods=["GET"]),
            Endpoint("/readyz", self._detailed, methods=["GET"]),
        )

    def close(self) -> None:
        """Wait for the commits that have begun. Blocks; no request comes any more."""
        for one in (self._metrics, self._backlog, self._store, self._reader, self._gate):
            one.close()

    def _endpoint(self, flow: Flow) -> Endpoint:
        assert isinstance(flow.source, Route)
        assert flow.request is not None
        buckets = Buckets(flow.source.rate) if flow.source.rate else None
        take = partial(self._hold, partial(self._take, flow, flow.source, flow.request, buckets))
        endpoint = Endpoint(flow.source.path, take, methods=[flow.source.method])
        endpoint.methods = {flow.source.method}  # a HEAD would run the handler of a GET
        return endpoint

    async def _hold(self, take: Callable[[Share, Request], Awaitable[Response]], request: Request) -> Response:
        """Count the bytes of a request until it is answered."""
        with self._budget.share() as share:
            return await take(share, request)

    async def _take(
        self, flow: Flow, route: Route, arguments: Arguments, buckets: Buckets | None, share: Share, request: Request
    ) -> Response:
        """Accept a request: read, validate, commit, answer."""
        self._check_open(route, flow.name, unread=True)
        sender = await principal(route, request, self._app.name)
        _check_rate(route, buckets, request, sender)
        most = min(route.max_body, self._context.max_body)
        content = await receive(request, arguments.body, most, share)
        outgoing = await self._message(flow, route, request, content, sender)
        self._check_open(
            route, flow.name, unread=False
        )  # it may be closed since: content comes as slowly as clients like
        id = outgoing.message.id
        try:
            await self._gate.accept([outgoing])
        except Full:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many requests wait to be stored; nothing was accepted",
                RETRY_SECONDS,
            ) from None
        except OutcomeUnknown:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the connection to the store was lost just then, so the message may be accepted or not; send the same "
                f"request again{'' if flow.id_from else f' with the header {KEY}: {id}'}: it is accepted once",
                RETRY_SECONDS,
                id=id,
            ) from None
        except Reused:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"{identifying(flow)} {id}: it was accepted before with another path, query or content; give each "
                "request one of its own",
            ) from None
        except (Unavailable, StoreConflict):
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "the store cannot be reached; nothing was accepted", RETRY_SECONDS
            ) from None
        asked = Asked(route.name, sender, id)
        status = self._status.url(asked)
        reply = await self._replies.wait(asked, route.reply) if route.reply else None
        if reply is not None:
            return Response(reply, HTTPStatus.OK, {"content-location": status}, JSON)
        return _json({"id": id, "status": status}, HTTPStatus.ACCEPTED, {"location": status})

    def _check_open(self, route: Route, flow: str, unread: bool) -> None:
        """Refuse what comes to a route that takes nothing now."""
        why = self._worker.directions.refuses(flow)
        if why:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{route.name} is {why}; nothing was accepted",
                RETRY_SECONDS,
                unread=unread,
            )

    async def _message(self, flow: Flow, route: Route, request: Request, content: bytes, sender: str) -> Outgoing:
        """The message of a request of a principal."""
        _check_text(request)
        asked = request.path_params, request.query_params.multi_items()
        body, key = await self._reader.read(flow, *asked, content)
        id = identity(flow, request.headers, key)
        try:
            outgoing = compose(self._context, route(body), source_of(self._app.name, sender), id, encoded=True)
        except TooLarge as error:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
        except Undecodable as error:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        # Whoever chose the id: it may be told to the client, who then sends it as its key. And of what came, not of
        # what becomes of it: another version of the app may have packed it otherwise.
        said = json.dumps((*asked, sender) if sender else asked).encode()
        return outgoing._replace(digest="", request=digest(said, content))

    async def _tell_status(self, request: Request) -> Response:
        """Tell the state of an accepted request: any instance knows it, and tells it to those that may know."""
        id = request.path_params["id"]
        if not is_name(id):
            raise Problem(HTTPStatus.NOT_FOUND, "there is no such message")
        known = await self._status.known(request, id)
        told = await self._asked(partial(self._status.tell, known)) if known else None
        if told is None:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                f"no message {id} was accepted here of which this request may know; ask at the whole URL that the "
                "answer to the message's request named, or as the principal that sent it",
            )
        return _json(told, HTTPStatus.OK, {"cache-control": "no-store"})

    async def _document(self, request: Request) -> Response:
        """What the routes take and answer, as OpenAPI."""
        return _json(self._described, HTTPStatus.OK)

    async def _measurements(self, request: Request) -> Response:
        """The metrics of the fleet."""
        return Response(await self._told(self._metrics.answer()), media_type=MEDIA)

    async def _scale(self, request: Request) -> Response:
        """How much there is to do, for who decides on the number of instances: messages that wait for nothing else."""
        return _json({"pending": await self._told(self._backlog.answer())}, HTTPStatus.OK)

    def _pending(self) -> int:
        return pending.ready(self._services.store, self._services.transport, list(self._app.flows))

    async def _asked(self, question: Callable[[], T]) -> T:
        """Ask the store for one request."""
        return await self._told(asyncio.to_thread(question))

    async def _told(self, answer: Awaitable[T]) -> T:
        """What the store and the broker answer."""
        try:
            return await answer
        except (Unavailable, StoreConflict) as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, _anonymous(error), RETRY_SECONDS) from None

    async def _live(self, request: Request) -> Response:
        """Whether this process runs. Asks nobody else."""
        return Response("ok\n", media_type="text/plain")

    async def _readiness(self, request: Request) -> Response:
        """Whether requests should come here now."""
        why = self._ready()
        if why:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why)
        return Response("ok\n", media_type="text/plain")

    async def _detailed(self, request: Request) -> Response:
        """The same; with `?verbose`, also what that was decided by."""
        if "verbose" not in request.query_params:
            return await self._readiness(request)
        why, checks = self._ready(), await self._checks()
        if why:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why, **checks)
        return _json({"status": HTTPStatus.OK, **checks}, HTTPStatus.OK)

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
        """How the store does. Blocks."""
        began = time.monotonic()
        try:
            self._services.store.now()
        except FlowKitError as error:
            return _anonymous(error)
        return f"answered in {(time.monotonic() - began) * 1e3:.1f} ms"


def _check_rate(route: Route, buckets: Buckets | None, request: Request, sender: str) -> None:
    """Refuse more than a route takes of one principal, or of one client where it has none: the server's, or that of a
    trusted proxy's X-Forwarded-For."""
    wait = buckets.take(sender or client(request.client.host if request.client else "")) if buckets else 0
    if wait:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"more than {route.rate:g} requests a second came to {route.name} from this client; nothing was accepted",
            wait,
            unread=True,
        )


def _anonymous(error: FlowKitError) -> str:
    """Tell strangers of an error of a service in other words: its text names hosts and databases."""
    _log.warning("a request could not be answered: %s", error)
    service = "broker" if isinstance(error, BrokerUnavailable) else "store"
    return f"the {service} cannot be reached now; the log of this instance says why"


def _application(*endpoints: Endpoint) -> Starlette:
    made = Starlette(
        routes=endpoints,
        exception_handlers={Problem: _tell_problem, HTTPException: _tell_http, Exception: _tell_error},
    )
    made.router.redirect_slashes = False  # it would send clients to the host that a request names
    return made


def _check_text(request: Request) -> None:
    """Refuse a path and a query whose escaped bytes are no text: the server puts other characters in their place."""
    for what, escaped in (("path", request.scope["raw_path"]), ("query", request.scope["query_string"])):
        try:
            unquote_to_bytes(escaped).decode()
        except UnicodeDecodeError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, f"the {what} is not UTF-8 text: {error}") from None


def _json(value: object, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, JSON)


def _tell_problem(request: Request, error: Any) -> Response:
    problem: Response = error.response()
    return problem


def _tell_error(request: Request, error: Any) -> Response:
    """Answer an error that nobody foresaw. The server logs it, and closes the connection."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "this request failed; the log of this instance says why", unread=True
    ).response()


def _tell_http(request: Request, error: Any) -> Response:
    """What Starlette found: no such path, or another method."""
    response = Problem(HTTPStatus(error.status_code), error.detail).response()
    response.headers.update(error.headers or {})
    return response
