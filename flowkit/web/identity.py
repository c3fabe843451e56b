"""The identity of a request: its principal, and the id of its message."""

import re
from http import HTTPStatus
from inspect import isawaitable

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from flowkit.errors import Unauthorized
from flowkit.message import is_name
from flowkit.model.flow import Flow
from flowkit.web.problem import Problem
from flowkit.web.route import Header, Route, source_of

KEYS = "[!-~]{1,255}"
"""Pattern of an id in a header: visible ASCII, which every proxy passes unchanged."""
KEY = "Idempotency-Key"
"""The header by which a client identifies a repeated request, unless the route has `id_from`."""
TRY = "FlowKit-Request-Id"
"""The header by which a load balancer identifies a request that it repeats at another instance."""


def identity(flow: Flow, headers: Headers, found: str | None) -> str | None:
    """The id of a request; None if it has none. `found`: the id that `id_from` finds in its arguments, if it is not a
    header.

    Raises Problem for a header that is missing, malformed, or contradicts the id.
    """
    key, source, name = headers.get(KEY), flow.id_from, identifying(flow)
    if source is None:
        id = headers.get(TRY) if key is None else key
    elif isinstance(source, Header):
        id = headers.get(source.name)
        if id is None:
            raise _malformed(f"{name}: this header is missing, and it identifies the requests to {flow.source.name}")
    else:
        id = found
    if (source is None or isinstance(source, Header)) and id is not None and not re.fullmatch(KEYS, id):
        raise _malformed(f"{name}: it has to be 1 to 255 characters of visible ASCII")
    if source is not None and key not in (None, id):
        raise _malformed(
            f"{KEY}: {name} identifies the requests to {flow.source.name}; leave the key out, or send the same"
        )
    return id


async def principal(route: Route, request: HTTPConnection, app: str) -> str:
    """The principal of a request, from its route's hook; empty if the route has none. Raises Problem (status 401)."""
    if route.principal is None:
        return ""
    head = HTTPConnection(request.scope)  # without the content, which is not bounded yet
    try:
        found = route.principal(head)
        name = await found if isawaitable(found) else found
    except Unauthorized as refused:
        raise _unauthorized(refused) from None
    if not name or not is_name(source_of(app, name)):
        raise _unauthorized(Unauthorized(f"{route.name}: the sender of this request has no valid name"))
    return name


def _unauthorized(refused: Unauthorized) -> Problem:
    problem = Problem(HTTPStatus.UNAUTHORIZED, str(refused), unread=True)
    problem.headers["www-authenticate"] = refused.challenge
    return problem


def identifying(flow: Flow) -> str:
    """The name of the header or argument that identifies a flow's requests, for messages."""
    source = flow.id_from
    if isinstance(source, Header):
        return source.name
    return KEY if source is None else source if isinstance(source, str) else "id"


def _malformed(why: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, why)
