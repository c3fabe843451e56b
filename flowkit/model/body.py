"""Bodies: how values become bytes, and how bytes become the same values again."""

import re
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cached_property
from types import NoneType
from typing import Any, get_origin

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json
from typing_extensions import is_typeddict

from flowkit.disclosure import faults
from flowkit.document import check_finite, exact
from flowkit.errors import DefinitionError, Undecodable
from flowkit.fidelity import Fidelity, difference

RAW = (str, bytes)
MOST_TYPES = 1000
SHAPES = {
    **dict.fromkeys(("model", "dataclass", "typed-dict", "dict"), "an object"),
    **dict.fromkeys(("list", "tuple", "set", "frozenset"), "a list"),
    **dict.fromkeys(("int", "float", "bool"), "a number"),
    **dict.fromkeys(("str", "bytes"), "text"),
}
"""Kind of core schema -> the JSON shape of its values. Values of one shape are never read as another, except for text,
which may contain a number."""


class Body:
    """Converts values of one annotation to bytes and back: text and bytes unchanged, all else as JSON."""

    def __init__(self, annotation: Any, where: str, untyped: bool = False) -> None:
        """`untyped`: the channel has no type, so that text is JSON there too."""
        self.annotation = annotation
        self.where = where
        self._untyped = untyped
        self.raw = annotation if annotation in RAW else None
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        except (PydanticUserError, TypeError) as error:
            raise DefinitionError(
                f"{where}: {annotation!r} cannot be serialised; use a pydantic model, dataclass, TypedDict, dict, "
                f"list, str or bytes ({str(error).splitlines()[0]})"
            ) from None
        plain = isinstance(annotation, type) and get_origin(annotation) is None and not is_typeddict(annotation)
        self._instance: type | None = annotation if plain and annotation is not Any else None
        self._types: set[tuple[type, ...]] = set()
        """Of the fields of flat objects that came out as they went in."""
        self._others: dict[type, Body] = {}
        """Without an annotation: how objects of these types become bytes."""

    @cached_property
    def shape(self) -> str:
        """The shape of its JSON: an object, a list, a number or text; empty where its type decides that by itself."""
        schema: Any = self._adapter.core_schema
        if schema["type"] == "definitions":
            schema = schema["schema"]
        fields = schema.get("schema", {"type": "model-fields"})["type"]  # else a validator sees the value before them
        own = "serialization" in schema or schema.get("custom_init") or fields not in ("model-fields", "dataclass-args")
        return "" if own else SHAPES.get(schema["type"], "")

    # ------------------------------------------------------------ bytes to values

    def decode(self, body: bytes) -> Any:
        """Return the value of a received body. Raises Undecodable, which names the invalid fields."""
        try:
            if self.raw is bytes:
                return body
            if self.raw is str:
                return self._text(body) if self._untyped else body.decode()
            value = self._adapter.validator.validate_json(body)
            return self._exact(body, value) if self._fidelity.decimals else value
        except ValidationError as error:
            raise Undecodable(faults(error, whole=True), faults(error, whole=False)) from None
        except UnicodeDecodeError as error:
            raise Undecodable(f"the body is not UTF-8 text: {error}") from None

    def _text(self, body: bytes) -> str:
        """The text of a JSON string. Everything else is text itself, so that a flow can look at any JSON, and at what
        earlier versions sent."""
        if body.startswith(b'"'):
            with suppress(ValueError):
                return str(from_json(body))
        return body.decode()

    def _exact(self, body: bytes, value: Any) -> Any:
        """The value, with all digits of its decimals: pydantic reads them by way of floats."""
        document = exact(body)
        if document is None:
            return value
        try:
            return self._adapter.validator.validate_python(document)
        except ValidationError as error:
            why = "a number has more digits than are read of it; send it as text"
            raise Undecodable(f"{why} ({faults(error, whole=True)})", why) from None

    @cached_property
    def _fidelity(self) -> Fidelity:
        return Fidelity(self._adapter.core_schema, named(self.annotation))

    # ------------------------------------------------------------ values to bytes

    @property
    def content_type(self) -> str:
        """The media type of the bytes."""
        if self.raw is bytes:
            return "application/octet-stream"
        return "text/plain; charset=utf-8" if self.raw is str else "application/json"

    def check(self) -> None:
        """Find what of the annotation never comes out as it went in. Raises DefinitionError with what to write
        instead. Names that are not defined yet are found at the first send."""
        with suppress(PydanticUserError):
            _ = self._sent

    @cached_property
    def _sent(self) -> Fidelity:
        if self._fidelity.faults:
            raise DefinitionError(f"{self.where}: {'; '.join(self._fidelity.faults)}")
        return self._fidelity

    @cached_property
    def _by_alias(self) -> bool | None:
        """Whether fields are written by their aliases. A channel without a type does so wherever it can."""
        ways = self._sent.ways
        return True if self._untyped and True in ways else ways[0]

    def encode(self, value: Any) -> bytes:
        """The bytes of a value. Raises TypeError when it is not what the annotation says, or would not come out as it
        went in, and DefinitionError when nothing of this annotation does."""
        if self.raw is not None:
            return self._encode_raw(value)
        try:
            if self.annotation is Any:
                return self._encode_untyped(value)
            if self._instance is None or not isinstance(value, self._instance):
                value = self._adapter.validator.validate_python(value)
            return self._encode_typed(value)
        except ValidationError as error:
            raise TypeError(f"{self.where} carries {named(self.annotation)}: {faults(error, whole=False)}") from None
        except PydanticSerializationError as error:
            # The rest is the text of a serializer, which may repeat the value.
            said = re.sub(r"(?s)^(Error calling function [^:]*).*", r"\1", str(error))
            raise TypeError(f"{self.where}: {type(value).__name__} cannot be serialised: {said}") from None

    def _encode_raw(self, value: Any) -> bytes:
        if isinstance(value, bytes) and self.raw is bytes:
            return value
        if not isinstance(value, str) or self.raw is not str:
            raise TypeError(f"{self.where} carries {named(self.annotation)}, and this is {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise TypeError(f"{self.where}: {type(value).__name__} cannot be serialised: {error}") from None

    def _encode_untyped(self, value: Any) -> bytes:
        """JSON, or an object of a type that says how it becomes JSON: what comes out, the flow's annotation says."""
        kind = type(value)
        if issubclass(kind, BaseModel) or is_dataclass(kind):
            if kind not in self._others:
                self._others[kind] = Body(kind, self.where, untyped=True)
            return self._others[kind].encode(value)
        return self._compared(value, to_json(value))

    def _encode_typed(self, value: Any) -> bytes:
        sent, kind = self._sent, type(value)
        if sent.flat and kind is self._instance:
            return self._encode_flat(value)
        serializer = self._adapter.serializer
        if sent.plain and self._instance in (None, kind) and not any(one.__subclasses__() for one in sent.parts):
            try:
                body = serializer.to_json(value, by_alias=self._by_alias, warnings="error")
            except PydanticSerializationError:
                pass  # it has, where its annotation says otherwise, what may come out all the same
            else:
                if not sent.may_differ(body):
                    return body
        return self._compared(value, serializer.to_json(value, by_alias=self._by_alias, warnings=False))

    def _encode_flat(self, value: Any) -> bytes:
        """Nothing but types has to be looked at, and those are mostly the same."""
        body = self._adapter.serializer.to_json(value, by_alias=self._by_alias, warnings=False)
        types = tuple(map(type, value.__dict__.values()))
        if types not in self._types or self._sent.may_differ(body, types.count(NoneType)):
            self._compared(value, body)
            if len(self._types) < MOST_TYPES:
                self._types.add(types)
        return body

    def _compared(self, value: Any, body: bytes) -> bytes:
        """The bytes of a value, if they come out as that value. Raises TypeError otherwise."""
        try:
            check_finite(body)
        except ValueError as error:
            raise TypeError(f"{self.where}: JSON has no NaN and no infinity: {error}") from None
        try:
            why = difference(value, self.decode(body))
        except Undecodable as error:
            why = error.told + (" (null may stand for NaN or an infinity)" if b"null" in body else "")
        if not why:
            return body
        if self.annotation is Any:
            why += "; a channel without a type carries what JSON knows, so give it one: app.channel(name, type)"
        raise TypeError(f"{self.where}: this {type(value).__name__} would not come out as it went in: {why}")


def named(annotation: Any) -> str:
    """The name of an annotation, for people."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
