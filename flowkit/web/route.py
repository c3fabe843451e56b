"""Routes: channels that HTTP requests come in by, and which part of a request becomes which argument of a handler."""

import re
import types
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property
from inspect import Parameter
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, create_model
from pydantic_core import to_json

from flowkit import duration
from flowkit.document import check_finite, check_readable
from flowkit.errors import DefinitionError, Undecodable
from flowkit.message import MAX_BODY
from flowkit.model.body import Body
from flowkit.model.channel import Binding, Channel
from flowkit.model.identity import EnvelopeField, IdFrom
from flowkit.model.signature import Signature
from flowkit.ports import Asked, Delivery, Giver

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
WITH_CONTENT = ("POST", "PUT", "PATCH")
SCALARS = (str, int, float, bool, Decimal, date, datetime, time, timedelta, UUID, Enum)
"""The types of values that a query can hold."""
NAME = re.compile(r"[a-z_][a-z0-9_]*", re.I)
SEGMENT = re.compile(r"[^{}/?#\s]*|\{[a-z_][a-z0-9_]*\}", re.I)
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,255}", re.I)
RESERVED = ("/flowkit", "/livez", "/readyz", "/metrics", "/scale")
"""The paths at which the ingress itself answers."""


REPLY_SECONDS = 86_400.0
"""Seconds for which every instance can repeat a reply."""
WAIT_SECONDS = 10.0
MAX_CONTENT = 1024 * 1024
"""Bytes of content that a route takes, unless it says otherwise."""


def _boxed(content: bytes) -> dict[str, str]:
    return {BOX: b64encode(content).decode()}


def _unboxed(content: Any) -> Any:
    """Content that is written as text instead is that of an earlier version."""
    return b64decode(content[BOX], validate=True) if isinstance(content, dict) and BOX in content else content


BOX = "base64"
Blob = Annotated[bytes, BeforeValidator(_unboxed), PlainSerializer(_boxed, when_used="json")]
"""Bytes in JSON, in a form that text has not."""


class Head(Protocol):
    """The head of a request, which a `principal` hook reads: what comes before the content."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By their names, in any case."""

    @property
    def query_params(self) -> Mapping[str, str]:
        """The query, by name."""


Principal = Callable[[Head], str | Awaitable[str]]
"""Finds who sends a request. Raises Unauthorized."""


def source_of(app: str, principal: str) -> str:
    """The source of the messages of a principal's requests: under it, the principal has ids of its own."""
    return f"{app}/{principal}" if principal else app


def principal_of(source: str) -> str:
    """The principal whose requests' messages have this source; empty where no principal was asked for."""
    return source.partition("/")[2]  # no name of an app has a slash


class Route(Channel[Any]):
    """A channel that HTTP requests come in by: `app.flow(web.post("/orders/{number}"))`.

    Its name is the method and the path. Each accepted request is one message. With `reply` the answer is what the
    flow's handler returned, if that is there within 10 seconds, or within the duration that is given; else that the
    request is accepted. `rate` is how many requests of one client a worker process takes in a second; more are told
    when to come again. `max_body` is how many bytes of content a request may have, 1 MiB (1,048,576) by default.

    `principal` is a function, plain or async, of the head of a request that returns who sends it, or raises
    `web.Unauthorized`. It runs on the event loop, so a plain one must not block. Each principal has keys, statuses and
    replies of its own. Without it, the status of a request is told at the URL that its answer names, which has a token;
    with `status="public"`, to all that know its key.
    """

    def __init__(
        self,
        method: str,
        path: str,
        *,
        reply: bool | duration.Duration = False,
        rate: float | None = None,
        principal: Principal | None = None,
        status: Literal["token", "public"] = "token",
        max_body: int = MAX_CONTENT,
    ) -> None:
        names = _parameters(method, path)
        if rate is not None and not rate > 0:
            raise DefinitionError(f"{method} {path}: rate={rate:g} takes no requests; write how many a second, or None")
        if status not in ("token", "public"):
            raise DefinitionError(f'{method} {path}: status={status!r}; write "token" or "public"')
        if principal is not None and not callable(principal):
            raise DefinitionError(f"{method} {path}: principal={principal!r} is no function of a request's head")
        if principal is not None and status == "public":
            raise DefinitionError(
                f"{method} {path}: a route with a principal tells its status to that principal; leave out "
                'status="public"'
            )
        if not 0 < max_body <= MAX_BODY:
            raise DefinitionError(
                f"{method} {path}: max_body={max_body} is no limit of its content; write a number of bytes up to "
                f"{MAX_BODY:,}"
            )
        super().__init__(f"{method} {path}")
        self.reply = WAIT_SECONDS * reply if isinstance(reply, bool) else duration.seconds(reply, f"{path}, reply")
        """How many seconds a request waits for its reply; 0 for one that gets none."""
        self.rate = rate
        self.principal = principal
        self.status = status
        self.max_body = max_body
        self.method = method
        self.path = path
        self.names = names
        self._bound: Binding | None = None

    @property
    def body(self) -> Body:
        """How a program that publishes to it writes what a request would bring."""
        return self._body if self._bound is None else self._bound.body

    def bind(self, handler: Signature) -> "RequestBinding":
        """Bind the handler of the flow at this route: its arguments are what a request brings."""
        self._bound = bound = RequestBinding(self, handler)
        return bound


class RequestBinding(Binding):
    """The way from requests into one handler: a message's body holds all arguments that its request brought."""

    def __init__(self, route: Route, handler: Signature) -> None:
        super().__init__(route, handler)
        self._route = route
        self.replies = route.reply > 0

    @cached_property
    def arguments(self) -> "Arguments":
        """The arguments of the handler, and the parts of a request that they come from."""
        handler = self._handler
        return Arguments(handler.flow, self._route, handler.parameters, handler.annotated)

    @property
    def names(self) -> Sequence[str]:
        return self.arguments.names

    @cached_property
    def body(self) -> Body:
        return self.arguments.message

    def call(self) -> Callable[..., Any]:
        handler, arguments = self._handler.function, self.arguments
        if arguments.alone:
            return handler
        return lambda body, **injected: handler(**arguments.unpack(body), **injected)

    def finish(self, result: object, delivery: Delivery, giver: Giver, send: Callable[[object], None]) -> None:
        """Keep the result as the reply, on a route with `reply`; otherwise send it on."""
        if not self.replies:
            send(result)
            return
        reply = self._reply(result)
        giver.finish()
        message = delivery.message
        giver.reply(Asked(self._route.name, principal_of(message.source), message.id), reply, REPLY_SECONDS)

    def _reply(self, result: object) -> bytes:
        """The value that the handler returned, as JSON."""
        try:
            reply = to_json(result)
            check_finite(reply)
            check_readable(reply)
        except ValueError as error:
            raise TypeError(
                f"flow {self._handler.flow}: its reply is no JSON, which has no NaN and no infinity: {error}"
            ) from None
        return reply

    def check_body(self) -> None:
        """Check nothing: the parameters say which parts of a request become the body."""

    def check_identity(self, id_from: IdFrom) -> None:
        """Check nothing: a request may have its id anywhere."""


class Header(EnvelopeField):
    """The header that identifies a request: `app.flow(web.post("/hooks"), id_from=web.header("X-GitHub-Delivery"))`."""

    def __init__(self, name: str) -> None:
        if not TOKEN.fullmatch(name):
            raise DefinitionError(f"web.header({name!r}): this is no name of a header; write one such as X-Request-Id")
        super().__init__(name, f"the header {name} of a request")


class Arguments:
    """The parts of a request that become the parameters of a flow's handler.

    A parameter that the path names comes from the path. With a method that has content, the first other parameter is
    the content. Other parameters of a type that a query can hold come from the query. The rest is injected.
    """

    def __init__(self, flow: str, route: Route, parameters: Sequence[Parameter], hints: Mapping[str, Any]) -> None:
        found = {one.name: one for one in parameters}
        missing = [name for name in route.names if name not in found]
        if missing:
            raise DefinitionError(
                f"flow {flow}: the path {route.path} has {{{missing[0]}}}, and its handler no parameter of that name"
            )
        rest = [one for one in parameters if one.name not in route.names]
        first = rest[0].name if rest and route.method in WITH_CONTENT else None
        self.path = route.names
        self.content = first
        self.query = tuple(one.name for one in rest if one.name != first and _scalar(hints.get(one.name)))
        self.names = tuple(one for one in found if one in self.path or one in self.query or one == first)
        where = f"flow {flow}"
        annotation = hints.get(first, Any) if first else None
        self.body = Body(annotation, f"{where}, parameter {first}") if first else None
        """Of the content."""
        self.alone = first is not None and len(self.names) == 1
        """Whether there is nothing but content, which then is the message's body as it came."""
        self.many = frozenset(name for name in self.query if _of_many(hints.get(name)))
        """Those of the query that may come more than once."""
        self.model: type[BaseModel] | None = None
        """Of the body of a message, where it is more than the content: an object with a field for each argument."""
        if not self.alone:
            kinds = dict(hints)
            if first is not None and self.body is not None and self.body.raw is bytes:
                kinds[first] = Blob
            fields: dict[str, Any] = {
                name: (kinds.get(name, str), ... if found[name].default is Parameter.empty else found[name].default)
                for name in self.names
            }
            self.model = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
        self.message = self.body if self.alone and self.body else Body(self.model, where)
        """How the body of a message is made and read."""

    def pack(self, path: Mapping[str, str], query: Sequence[tuple[str, str]], content: bytes) -> bytes:
        """The body of the message of a request. Raises Undecodable, which names the field at fault."""
        if self.body is not None:
            self._check_content(self.body, content)
        if self.alone:
            return content
        given: dict[str, Any] = {name: path[name] for name in self.path}
        for name, value in query:
            if name not in self.query:
                known = ", ".join(self.query) or "none"
                raise Undecodable(f"{name}: there is no such query parameter; there are {known}")
            if name in self.many:
                given.setdefault(name, []).append(value)
            elif given.setdefault(name, value) is not value:
                raise Undecodable(f"{name}: it came more than once")
        body = to_json(given)
        if self.content is not None:
            # As it came: read and written again, its numbers would lose digits.
            body = b"".join(
                (body[:-1], b"," if given else b"", to_json(self.content), b":", self._written(content), b"}")
            )
        self.message.decode(body)
        return body

    def _check_content(self, body: Body, content: bytes) -> None:
        try:
            if body.raw is None:
                check_finite(content)
        except ValueError as error:
            raise Undecodable(f"the content is no JSON, which has no NaN and no infinity: {error}") from None
        body.decode(content)

    def _written(self, content: bytes) -> bytes:
        """The content as JSON."""
        if self.body is None or self.body.raw is None:
            return content
        return to_json(content.decode() if self.body.raw is str else _boxed(content))

    def unpack(self, body: Any) -> dict[str, Any]:
        """The arguments of the body of a message, by name."""
        assert isinstance(body, BaseModel)
        return {name: getattr(body, name) for name in self.names}


def _parameters(method: str, path: str) -> tuple[str, ...]:
    """The names of the parameters of a path. Raises DefinitionError for a route that cannot be."""
    if method not in METHODS:
        raise DefinitionError(f"{method} {path}: a route's method is one of {', '.join(METHODS)}")
    parts = path.split("/")
    if not path.startswith("/") or not all(SEGMENT.fullmatch(one) for one in parts):
        raise DefinitionError(
            f'{method} {path}: a path begins with "/", and each of its parts is text or one parameter: '
            '"/customers/{customer}/orders"'
        )
    if path.startswith(RESERVED):
        raise DefinitionError(f"{method} {path}: {', '.join(RESERVED)} are answered by FlowKit; take another path")
    names = [one[1:-1] for one in parts if one.startswith("{")]
    if len(set(names)) < len(names):
        raise DefinitionError(f"{method} {path}: a parameter is named twice")
    return tuple(names)


def _scalar(annotation: Any) -> bool:
    """Whether a query can say it: text, numbers, times, choices, or many of these."""
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, set, frozenset):
        return all(one in (type(None), Ellipsis) or _scalar(one) for one in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _scalar(get_args(annotation)[0])
    return isinstance(annotation, type) and issubclass(annotation, SCALARS)


def _of_many(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return any(_of_many(one) for one in get_args(annotation))
    return get_origin(annotation) in (list, tuple, set, frozenset)
