"""Channels: names that messages are published to, and the type of what they carry."""

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import is_typeddict

from flowkit import duration
from flowkit.errors import DefinitionError, Undecodable
from flowkit.message import check_name

T = TypeVar("T")
RAW = (str, bytes)


class Channel(Generic[T]):
    """A typed name that messages are published to; every subscribed flow gets its own copy.

    Calling it routes a value: `return accepted(value, key="k", delay="10m")`.
    """

    def __init__(self, name: str, type: Any = Any, optional: bool = False, shared: bool = False) -> None:
        try:
            self.name = check_name("a channel's name", name)
        except Undecodable as error:
            raise DefinitionError(str(error)) from None
        self.type = type
        self.optional = optional
        self.shared = shared
        self.body = Body(type, f"channel {name}")

    def __call__(
        self,
        value: T,
        *,
        key: str | None = None,
        delay: duration.Duration = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> "Routed[T]":
        return Routed(self, value, key, duration.seconds(delay, "delay"), headers or {})

    def __repr__(self) -> str:
        return f"Channel({self.name!r})"


class Routed(Generic[T]):
    """A value on its way to a channel, with what the envelope needs."""

    __slots__ = ("channel", "delay", "headers", "key", "value")

    def __init__(
        self, channel: Channel[T], value: T, key: str | None, delay: float, headers: Mapping[str, str]
    ) -> None:
        self.channel = channel
        self.value = value
        self.key = key
        self.delay = delay
        self.headers = headers


class Split(Generic[T]):
    """Returned by a handler: each of these values is a message of its own."""

    def __init__(self, values: Iterable[T]) -> None:
        self.values = values


class Body:
    """How values of one annotation become bytes and come back: text and bytes as they are, all else as JSON."""

    def __init__(self, annotation: Any, where: str) -> None:
        self.annotation = annotation
        self.where = where
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

    def decode(self, body: bytes) -> Any:
        """The value of a received body. Raises Undecodable with the fields at fault."""
        try:
            if self.raw is bytes:
                return body
            if self.raw is str:
                return body.decode()
            return self._adapter.validate_json(body)
        except ValidationError as error:
            raise Undecodable(_faults(error)) from None
        except UnicodeDecodeError as error:
            raise Undecodable(f"the body is not UTF-8 text: {error}") from None

    def content_type(self, value: Any) -> str:
        """The media type of a value's bytes."""
        kind = type(value) if self.annotation is Any else self.raw
        if kind is bytes:
            return "application/octet-stream"
        return "text/plain; charset=utf-8" if kind is str else "application/json"

    def encode(self, value: Any) -> bytes:
        """The bytes of a value. Raises TypeError when it is not what the annotation says."""
        if isinstance(value, bytes) and self.raw in (bytes, None) and self._instance is not dict:
            return value
        try:
            if isinstance(value, str) and self.raw is str:
                return value.encode()
            if self.annotation is Any:
                return value.encode() if isinstance(value, str) else to_json(value)
            if self._instance is None or not isinstance(value, self._instance):
                value = self._adapter.validate_python(value)
            return self._adapter.dump_json(value)
        except ValidationError as error:
            raise TypeError(f"{self.where} carries {_name(self.annotation)}: {_faults(error)}") from None
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            raise TypeError(f"{self.where}: {type(value).__name__} cannot be serialised: {error}") from None


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _faults(error: ValidationError) -> str:
    faults = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'the body'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)[:5]
    ]
    more = error.error_count() - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more > 0 else "")
