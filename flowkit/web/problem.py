"""Errors of requests, as problem+json (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""Seconds after which a client may repeat a request that this instance cannot accept now."""


class Problem(Exception):
    """Ends a request with a status and a reason. `retry`: seconds after which it may be repeated. `unread`: close the
    connection, because unread content may still arrive. `members`: further members of the JSON object."""

    def __init__(
        self, status: HTTPStatus, detail: str, retry: int | None = None, unread: bool = False, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {} if retry is None else {"retry-after": str(retry)}
        if unread:
            self.headers["connection"] = "close"
        self.members = members

    def response(self) -> Response:
        """The answer to the client."""
        body = {"type": "about:blank", "title": self.status.phrase, "status": self.status, "detail": self.detail}
        return Response(to_json({**body, **self.members}), self.status, self.headers, MEDIA_TYPE)
