"""The identity of a request: who sends it, and the id of its message."""

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
"""What an id in a header has to be: visible ASCII, which every proxy passes on as it is."""
KEY = "Idempotency-Key"
"""The header by which a client may send a request again, where the route names nothing else."""
TRY = "FlowKit-Request-Id"
"""The same, of a balancer that sends a request to another instance."""


def identity(flow: Flow, headers: Headers, found: str | None) -> str | None:
    """The id of a request; None for one that has none. `found`: what `id_from` finds in its arguments, where it is no
    header.

    Raises Problem for a header that cannot be an id.
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
    """The sender of a request, by the hook of its route; empty for a route that has none. Raises Problem."""
    if route.principal is None:
        return ""
    head = HTTPConnection(request.scope)  # without the content, which nobody has read or bounded yet
    try:
        found = route.principal(head)
        name = await found if isawaitable(found) else found
    except Unauthorized as refused:
        raise _unauthorized(refused) from None
    if not name or not is_name(source_of(app, name)):
        raise _unauthorized(Unauthorized(f"{route.name}: what this request says of its sender is no name"))
    return name


def _unauthorized(refused: Unauthorized) -> Problem:
    problem = Problem(HTTPStatus.UNAUTHORIZED, str(refused), unread=True)
    problem.headers["www-authenticate"] = refused.challenge
    return problem


def identifying(flow: Flow) -> str:
    """What identifies the requests of a flow, for people."""
    source = flow.id_from
    if isinstance(source, Header):
        return source.name
    return KEY if source is None else source if isinstance(source, str) else "id"


def _malformed(why: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, why)
