"""The content of requests: its type, its largest size, and the longest time for it to arrive."""

import asyncio
from email.message import Message
from http import HTTPStatus
from types import TracebackType

from starlette.requests import ClientDisconnect, Request

from flowkit.model.body import Body
from flowkit.web.problem import RETRY_SECONDS, Problem

CONTENT_SECONDS = 30.0
"""Longest time in seconds for a content to arrive."""
FREE = 64 * 1024
"""Bytes of each request that do not count for the budget, so that small requests pass when large ones fill it."""
IN_FLIGHT = 64 * 1024 * 1024
"""Most bytes of content that a worker process holds at once."""
JSON = "application/json"
UNKNOWN = "application/octet-stream"
"""The type of content without a Content-Type. A page of another site can send such content, but no JSON."""


class Budget:
    """The bytes of content that a process may hold. Lives on the event loop."""

    def __init__(self) -> None:
        self.most = IN_FLIGHT
        self.used = 0

    def share(self) -> "Share":
        """The share of one request: a context manager, which returns its bytes to the budget."""
        return Share(self)


class Share:
    """The bytes that one request holds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    def __enter__(self) -> "Share":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.used -= self._held

    def grow(self, size: int) -> None:
        """Raise this share to a content of `size` bytes. Raises Problem if the budget is exceeded."""
        more = max(0, size - FREE) - self._held
        if self._budget.used + more > self._budget.most:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"this process holds {self._budget.most:,} bytes of other requests; nothing was accepted",
                RETRY_SECONDS,
                unread=True,
            )
        self._held += more
        self._budget.used += more


async def receive(request: Request, body: Body | None, most: int, share: Share) -> bytes:
    """Receive the content of a request. `body`: how the route reads it; None if it takes none. Raises Problem for
    content of another type, of more than `most` bytes, beyond the budget, or that does not arrive in time."""
    if body is not None:
        _check_media(body, request)
    if _length(request) > most:
        raise _too_large(most)
    content = bytearray()
    try:
        async with asyncio.timeout(CONTENT_SECONDS):
            async for part in request.stream():
                if len(content) + len(part) > most:
                    raise _too_large(most)
                share.grow(len(content) + len(part))
                content += part
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, f"the content did not come within {CONTENT_SECONDS:g} s", unread=True
        ) from None
    except ClientDisconnect:
        raise Problem(HTTPStatus.BAD_REQUEST, "the client went away before its content was here") from None
    if body is None and content:
        raise Problem(HTTPStatus.BAD_REQUEST, "this route takes no content")
    return bytes(content)


def _length(request: Request) -> int:
    """The request's Content-Length; 0 without one. The server has refused malformed ones."""
    return int(request.headers.get("content-length") or 0)


def _too_large(most: int) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the content has more than {most:,} bytes, which is the limit of this route (max_body=)",
        unread=True,
    )


def _check_media(body: Body, request: Request) -> None:
    """Raise Problem for content of a type, charset or encoding that the route does not read."""
    said = Message()
    said["content-type"] = request.headers.get("content-type") or UNKNOWN
    media, charset = said.get_content_type(), said.get_content_charset("utf-8")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if body.raw is None and not _is_json(media):
        why = f"the content is {media}; this route takes {JSON}"
    elif body.raw is str and charset not in ("utf-8", "utf8", "us-ascii"):
        why = f"the charset of the content is {charset}; this route takes utf-8"
    elif encoding != "identity":
        why = f"its content-encoding is {encoding}; send it as it is"
    else:
        return
    raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, why, unread=True)


def _is_json(media: str) -> bool:
    return media == JSON or (media.startswith("application/") and media.endswith("+json"))
