"""Responses of HTTP endpoints: JSON, and each error as a problem."""

import logging
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint

from flowkit.errors import BrokerUnavailable, FlowKitError, StoreConflict, Unavailable
from flowkit.web.content import JSON
from flowkit.web.problem import RETRY_SECONDS, Problem

T = TypeVar("T")
_log = logging.getLogger("flowkit.http")


def application(*endpoints: Endpoint) -> Starlette:
    """An ASGI application of these endpoints, which answers every error with a problem."""
    made = Starlette(
        routes=endpoints,
        exception_handlers={Problem: _tell_problem, HTTPException: _tell_http, Exception: _tell_error},
    )
    made.router.redirect_slashes = False  # it would send clients to the host that a request names
    return made


def as_json(value: object, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose content is this value as JSON."""
    return Response(to_json(value), status, headers, JSON)


async def answered(answer: Awaitable[T]) -> T:
    """An answer of the store or the broker. Raises Problem while one of them cannot be reached."""
    try:
        return await answer
    except (Unavailable, StoreConflict) as error:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, anonymous(error), RETRY_SECONDS) from None


def anonymous(error: FlowKitError) -> str:
    """The error of a service in words for anybody: its own text names hosts and databases, and goes to the log."""
    _log.warning("a request could not be answered: %s", error)
    service = "broker" if isinstance(error, BrokerUnavailable) else "store"
    return f"the {service} cannot be reached now; the log of this instance says why"


def _tell_problem(request: Request, error: Any) -> Response:
    problem: Response = error.response()
    return problem


def _tell_error(request: Request, error: Any) -> Response:
    """Answer an error that nobody foresaw. The server logs it, and closes the connection."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "this request failed; the log of this instance says why", unread=True
    ).response()


def _tell_http(request: Request, error: Any) -> Response:
    """Answer what Starlette found: no such path, or another method."""
    response = Problem(HTTPStatus(error.status_code), error.detail).response()
    response.headers.update(error.headers or {})
    return response
