"""What went wrong with a request, as problem+json (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""After so long a request that this instance cannot take now may be sent again."""


class Problem(Exception):
    """Ends a request with this status, and says why. `retry` is after how many seconds it may be sent again. `unread`:
    content may still come that nobody will read, so the connection is closed."""

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
