"""Messages and requests of other programs: their bodies, and the ids under which they take effect once."""

import dataclasses
import logging
import re
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import is_typeddict

from flowkit.errors import DefinitionError, Undecodable
from flowkit.message import CONTENT_ENCODING, Message
from flowkit.model.body import Body

COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
UNCHANGED = frozenset({"", "identity", "utf-8", "utf8", "us-ascii", "ascii", "binary", "7bit", "8bit"})
"""Content encodings that programs write for a body that is not encoded."""
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_log = logging.getLogger("flowkit.foreign")


class EnvelopeField:
    """A place beside the body that has the id of a message, such as a header of an HTTP request."""

    def __init__(self, name: str, label: str) -> None:
        """`label`: what it is, for people."""
        self.name = name
        self.label = label


IdFrom = str | Callable[[Any], object] | EnvelopeField
"""Where the id is: a field of the body such as "order.number", a function of the body, or a header of the request."""


def expand(message: Message, limit: int) -> Message:
    """A foreign message with the body that was compressed, of at most `limit` bytes. Raises Undecodable."""
    said = message.headers.get(CONTENT_ENCODING, "") if isinstance(message.headers, Mapping) else ""
    encodings = set(re.split(r"[\s,:;]+", str(said).strip().lower())) - UNCHANGED
    if not encodings:
        return message
    if len(encodings) > 1 or not encodings <= COMPRESSED:
        raise Undecodable(f"its content_encoding is {said!r:.80}; it may be gzip, deflate or none")
    body, rest = b"", message.body
    while True:  # gzip may have several members
        expanding = zlib.decompressobj(GZIP_OR_ZLIB)
        try:
            body += expanding.decompress(rest, limit + 1 - len(body))
        except zlib.error as error:
            raise Undecodable(f"its content_encoding is {said!r:.80}, and its body is not: {error}") from None
        if len(body) > limit:
            raise Undecodable(f"its {said} body exceeds the limit of {limit:,} bytes when it is expanded")
        if not expanding.eof:
            raise Undecodable(f"its {said} body is cut off")
        if not (rest := expanding.unused_data):
            break
    headers = {name: value for name, value in message.headers.items() if name != CONTENT_ENCODING}
    return message._replace(body=body, headers=headers)


class Identifier:
    """Finds the ids of foreign messages, or of requests, for one flow."""

    def __init__(self, flow: str, id_from: IdFrom | None, body: Body) -> None:
        self._flow = flow
        self._id_from = id_from
        self._body = body

    def check(self) -> None:
        """Find what is wrong with `id_from`. Raises DefinitionError with what to write instead."""
        if not isinstance(self._id_from, str):
            return
        first, fields = self._id_from.split(".")[0], _fields(self._body.annotation)
        if self._body.raw is not None:
            raise DefinitionError(
                f"flow {self._flow}: id_from={self._id_from!r} names a field, but its body is "
                f"{self._body.annotation.__name__}; write a function of the body, id_from=lambda body: …"
            )
        if fields is not None and first not in fields:
            raise DefinitionError(
                f"flow {self._flow}: id_from={self._id_from!r}, but its body has no field {first}; its fields are "
                f"{', '.join(fields)}"
            )

    def find(self, message: Message) -> str:
        """The id of a foreign message; empty if it has none, which is logged once.

        Raises Undecodable when `id_from` finds none, or what the body's own validation raises.
        """
        if self._id_from is not None:
            return self.key(message.body)
        if not message.id:
            _ = self._warned
        return message.id

    def key(self, content: bytes) -> str:
        """The value that `id_from` finds in a body. Raises as `find` does."""
        body = self._body.decode(content)
        found = self._id_from(body) if callable(self._id_from) else _walk(body, str(self._id_from))
        if isinstance(found, bool) or not isinstance(found, str | int | UUID) or found == "":
            flow, why = (
                f"flow {self._flow}: id_from found",
                "which is no id; it has to be text, an integer or a UUID",
            )
            raise Undecodable(f"{flow} {found!r:.80} in the body, {why}", f"{flow} {type(found).__name__}, {why}")
        return str(found)

    @cached_property
    def _warned(self) -> None:
        _log.warning(
            "flow %s: messages of other programs come without an id, so each is applied at least once: again whenever "
            "the broker delivers it again; name a field that identifies them, @app.flow(…, id_from=…)",
            self._flow,
        )


def _fields(annotation: Any) -> list[str] | None:
    """The fields of a body; None where nobody knows them before."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    if dataclasses.is_dataclass(annotation):
        return [one.name for one in dataclasses.fields(annotation)]
    if is_typeddict(annotation):
        return list(annotation.__annotations__)
    return None


def _walk(body: Any, path: str) -> Any:
    for name in path.split("."):
        body = body.get(name) if isinstance(body, Mapping) else getattr(body, name, None)
    return body
