"""The status of requests, for clients that may read it."""

from collections.abc import Collection, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json, to_json
from starlette.requests import Request

from flowkit.app import App
from flowkit.ports import Asked, Store
from flowkit.web.identity import principal
from flowkit.web.problem import Problem
from flowkit.web.route import Route, source_of

PATH = "/flowkit/messages/"
"""URL prefix of the status of each message, which is followed by its id."""
TOKEN = "token"
"""The query parameter with the status token."""
TOKEN_BYTES = 16


class Status:
    """Finds the states of requests that any instance accepted.

    An id is no secret: it is in logs, traces and later messages. Therefore only the request's principal may read its
    status, or the bearer of a status token, which is a hash of the request with a key of the store. If the route's
    status is public, everyone may.
    """

    def __init__(self, app: App, store: Store) -> None:
        """Read the store's token key. Blocks. Raises StoreUnavailable, or ConfigError for a store without a key."""
        self._app = app
        self._store = store
        self._key = store.key()
        self._flows = [flow for flow in app.flows.values() if isinstance(flow.source, Route)]
        self._routes = {flow.source.name: flow.source for flow in self._flows if isinstance(flow.source, Route)}

    def url(self, asked: Asked) -> str:
        """The URL path of a request's status, with a status token if its route needs one."""
        path, route = PATH + quote(asked.id, safe=""), self._routes[asked.route]
        if route.principal is not None or route.status == "public":
            return path
        return f"{path}?{TOKEN}={self._token(asked)}"

    async def known(self, request: Request, message: str) -> Sequence[Asked]:
        """The requests with the id `message` whose status `request` may read. Raises Problem if no hook recognises its
        sender, and so it may read none."""
        token = request.query_params.get(TOKEN)
        if token is not None:
            requests = [Asked(name, "", message) for name, route in self._routes.items() if route.principal is None]
            return [one for one in requests if compare_digest(self._token(one).encode(), token.encode())]
        told = [route for route in self._routes.values() if route.principal is not None or route.status == "public"]
        principals: dict[int, str] = {}
        refused: Problem | None = None
        for hook, route in {id(route.principal): route for route in told}.items():  # each hook is asked once
            try:
                principals[hook] = await principal(route, request, self._app.name)
            except Problem as problem:
                refused = refused or problem
        if refused is not None and not principals:
            raise refused
        known = [(route.name, principals.get(id(route.principal))) for route in told]
        return [Asked(name, one, message) for name, one in known if one is not None]

    def tell(self, requests: Sequence[Asked]) -> dict[str, Any] | None:
        """The states of requests with one id, as JSON; None if none of them was accepted. Blocks."""
        app = self._app.name
        accepted = {one: (f"channel:{one.route}", source_of(app, one.principal), one.id) for one in requests}
        handled = {
            (one, flow.name): (flow.name, source_of(app, one.principal), one.id)
            for one in requests
            for flow in self._flows
            if flow.source.name == one.route
        }
        found = self._store.answers.states([*accepted.values(), *handled.values()])
        requests = [one for one in requests if accepted[one] in found]
        if not requests:
            return None
        # A key may have been sent to several routes. An accepted request that no flow has handled yet counts too.
        states = {flow: found.get(entry, "accepted") for (one, flow), entry in handled.items() if one in requests}
        told = {"id": requests[0].id, "state": _summary(states.values()), "flows": states}
        for reply in self._store.answers.replies(app, requests).values():
            told["reply"] = from_json(reply)
        return told

    def _token(self, asked: Asked) -> str:
        said = to_json([self._app.name, asked.route, asked.id])
        return blake2b(said, key=self._key, digest_size=TOKEN_BYTES, person=b"flowkit status").hexdigest()


def _summary(states: Collection[str]) -> str:
    """The state of a message that several flows got: dead if one is, applied if all are, else accepted."""
    if "dead" in states:
        return "dead"
    return "applied" if states and all(one == "applied" for one in states) else "accepted"
