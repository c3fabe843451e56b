"""The ingress: one HTTP endpoint for each route of an app. A request is a message, and answered when that is stored."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint

from flowkit.app import App
from flowkit.engine.worker import Worker
from flowkit.errors import OutcomeUnknown, Reused, StoreConflict, TooLarge, Unavailable, Undecodable
from flowkit.message import digest, is_name
from flowkit.model.flow import Flow
from flowkit.model.outbox import Outgoing, compose
from flowkit.ports import Asked
from flowkit.publisher import Publisher
from flowkit.services import Services
from flowkit.web.commit_queue import CommitQueue, Full
from flowkit.web.content import JSON, Budget, Share, receive
from flowkit.web.identity import KEY, identifying, identity, principal
from flowkit.web.probes import Probes
from flowkit.web.problem import RETRY_SECONDS, Problem
from flowkit.web.rate_limiter import RateLimiter, client
from flowkit.web.reader import Reader
from flowkit.web.replies import Replies
from flowkit.web.responses import answered, application, as_json
from flowkit.web.route import Arguments, RequestBinding, Route, source_of
from flowkit.web.status import PATH, Status


class Ingress:
    """Serves the routes of an app, on services of its own process.

    `asgi` is the ASGI application for clients, `operators` the one for operators: they have listeners of their own.
    """

    def __init__(self, app: App, services: Services, worker: Worker, ready: Callable[[], str]) -> None:
        """`worker` is that of this process. `ready` says why no requests should come now; empty while they may. Raises
        DefinitionError."""
        self._app = app
        self._worker = worker
        self._context = app.context(services)
        self._commits = CommitQueue(Publisher(services.store, self._context))
        self._budget = Budget()
        self._reader = Reader(app.flows)
        self._replies = Replies(partial(services.store.answers.replies, app.name))
        self._status = Status(app, services.store)
        self._probes = Probes(app, services, worker, ready)
        endpoints = {
            flow.source.name: self._endpoint(flow) for flow in app.flows.values() if isinstance(flow.source, Route)
        }
        status = Endpoint(PATH + "{id:path}", self._tell_status, methods=["GET"])
        self.asgi = application(*endpoints.values(), status, *self._probes.clients)
        self.operators = application(*self._probes.operators)

    def close(self) -> None:
        """Wait for the commits that have begun. Blocks; no request comes any more."""
        for one in (self._probes, self._reader, self._commits):
            one.close()

    def _endpoint(self, flow: Flow) -> Endpoint:
        assert isinstance(flow.source, Route)
        assert isinstance(flow.binding, RequestBinding)
        limiter = RateLimiter(flow.source.rate) if flow.source.rate else None
        take = partial(self._hold, partial(self._take, flow, flow.source, flow.binding.arguments, limiter))
        endpoint = Endpoint(flow.source.path, take, methods=[flow.source.method])
        endpoint.methods = {flow.source.method}  # a HEAD would run the handler of a GET
        return endpoint

    async def _hold(self, take: Callable[[Share, Request], Awaitable[Response]], request: Request) -> Response:
        """Count the bytes of a request until it is answered."""
        with self._budget.share() as share:
            return await take(share, request)

    async def _take(
        self,
        flow: Flow,
        route: Route,
        arguments: Arguments,
        limiter: RateLimiter | None,
        share: Share,
        request: Request,
    ) -> Response:
        """Accept a request: read, validate, commit, answer."""
        self._check_open(route, flow.name, unread=True)
        sender = await principal(route, request, self._app.name)
        _check_rate(route, limiter, request, sender)
        most = min(route.max_body, self._context.max_body)
        content = await receive(request, arguments.body, most, share)
        outgoing = await self._message(flow, route, request, content, sender)
        self._check_open(route, flow.name, unread=False)  # closed since, perhaps: clients send as slowly as they like
        await self._commit(flow, outgoing)
        return await self._answer(route, Asked(route.name, sender, outgoing.message.id))

    async def _commit(self, flow: Flow, outgoing: Outgoing) -> None:
        """Return when the message of a request is accepted. Raises Problem."""
        id = outgoing.message.id
        try:
            await self._commits.accept([outgoing])
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

    async def _answer(self, route: Route, asked: Asked) -> Response:
        """The answer to an accepted request: the reply of its flow, or where its status is."""
        status = self._status.url(asked)
        reply = await self._replies.wait(asked, route.reply) if route.reply else None
        if reply is not None:
            return Response(reply, HTTPStatus.OK, {"content-location": status}, JSON)
        return as_json({"id": asked.id, "status": status}, HTTPStatus.ACCEPTED, {"location": status})

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
        told = await answered(asyncio.to_thread(self._status.tell, known)) if known else None
        if told is None:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                f"no message {id} was accepted here of which this request may know; ask at the whole URL that the "
                "answer to the message's request named, or as the principal that sent it",
            )
        return as_json(told, HTTPStatus.OK, {"cache-control": "no-store"})


def _check_rate(route: Route, limiter: RateLimiter | None, request: Request, sender: str) -> None:
    """Refuse more than a route takes of one principal, or of one client where it has none: the server's, or that of a
    trusted proxy's X-Forwarded-For."""
    wait = limiter.take(sender or client(request.client.host if request.client else "")) if limiter else 0
    if wait:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"more than {route.rate:g} requests a second came to {route.name} from this client; nothing was accepted",
            wait,
            unread=True,
        )


def _check_text(request: Request) -> None:
    """Refuse a path and a query whose escaped bytes are no text: the server puts other characters in their place."""
    for what, escaped in (("path", request.scope["raw_path"]), ("query", request.scope["query_string"])):
        try:
            unquote_to_bytes(escaped).decode()
        except UnicodeDecodeError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, f"the {what} is not UTF-8 text: {error}") from None
