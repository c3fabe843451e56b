"""Fidelity: whether the values of an annotation survive JSON unchanged."""

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime
from math import isfinite
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from flowkit.disclosure import place
from flowkit.document import check_finite, may_be_too_long, may_have_offset

Schema = Mapping[str, Any]
"""A core schema, or a part of one."""
LEAVES = frozenset({"str", "bytes", "int", "bool", "none", "float", "decimal", "uuid", "date", "datetime", "timedelta"})
FIELDS = frozenset({"schema", "validation_alias", "serialization_alias", "frozen"})
PLAIN: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(LEAVES, frozenset({"microseconds_precision"})),
    "nullable": frozenset({"schema"}),
    "default": frozenset({"schema", "default", "default_factory", "default_factory_takes_data", "copy_default"}),
    "list": frozenset({"items_schema"}),
    "dict": frozenset({"keys_schema", "values_schema"}),
    "enum": frozenset({"cls", "members", "sub_type"}),
    "model": frozenset({"cls", "schema", "config", "frozen", "generic_origin"}),
    "model-fields": frozenset({"fields", "model_name"}),
    "model-field": FIELDS,
    "dataclass": frozenset({"cls", "schema", "config", "fields", "frozen", "generic_origin"}),
    "dataclass-args": frozenset({"fields", "dataclass_name"}),
    "dataclass-field": FIELDS | {"name", "kw_only", "init"},
    "definitions": frozenset({"schema", "definitions"}),
    "definition-ref": frozenset({"schema_ref"}),
}
"""Kind of schema whose values survive JSON -> the keys that change nothing about that. Kinds and keys that are missing
here, in this version of pydantic or a later one, are not trusted: their values are compared one by one."""
ALWAYS = frozenset({"type", "ref", "metadata", "strict"})
FLAT = LEAVES | {"nullable", "default", "enum", "model", "model-fields", "dataclass", "dataclass-args"}
CONFIG = frozenset(
    {"title", "validate_by_name", "validate_by_alias", "serialize_by_alias", "from_attributes", "strict"}
)
PARTS = (
    "schema", "items_schema", "keys_schema", "values_schema", "extras_schema", "lax_schema", "strict_schema",
    "json_schema", "python_schema", "choices", "steps",
)  # fmt: skip
"""The keys under which schemas have parts, besides fields."""


class Alias(NamedTuple):
    """The names under which a field is read and written."""

    field: str
    read: frozenset[str]
    name: str
    alias: str
    """The name when fields are written by alias."""
    default: str
    """The name when the model decides how its fields are written."""


class Fidelity:
    """The fidelity of an annotation, as far as its core schema tells."""

    def __init__(self, schema: Schema, where: str) -> None:
        self.faults: list[str] = []
        """The faults of a type whose values never survive JSON, each with what to write instead."""
        self.plain = True
        """Whether a valid value survives JSON, but for the cases of `may_differ` and `parts`."""
        self.kinds: set[str] = set()
        self.parts: set[type] = set()
        """Models and dataclasses within the annotation. A subclass in their place loses its further fields."""
        self._aliases: list[Alias] = []
        self._definitions: dict[str, Schema] = {}
        self._read: set[str] = set()
        self._open: set[str] = set()
        self._look(schema, where, {})
        self.parts.discard(schema.get("cls", object))
        self.ways = self._find_ways()
        """How to write fields so that all are found again: by name (False), by alias (True), as models say (None)."""
        self.decimals = "decimal" in self.kinds
        self._times = "datetime" in self.kinds
        self.flat = self.plain and self.kinds <= FLAT and not self.parts and "cls" in schema
        """Whether this is an object of plain fields without parts, whose values' types show whether it is valid."""

    def may_differ(self, body: bytes, nones: int = 0) -> bool:
        """Whether JSON may change a valid value of a plain annotation. `body` is its JSON; `nones` of its fields are
        None."""
        return (
            body.count(b"null") > nones  # NaN and infinities are written as null, and so is None where it is invalid
            or (self.decimals and (b"NaN" in body or b"Infinity" in body))
            or (self._times and may_have_offset(body))
            or may_be_too_long(body)
        )

    def _look(self, schema: Schema, where: str, config: Schema) -> None:
        """Read a schema and its parts. `where` names its place for errors."""
        kind = schema["type"]
        self.kinds.add(kind)
        self.plain = self.plain and _is_plain(schema)
        if written := schema.get("serialization"):
            function = written.get("function")
            module = getattr(function, "__module__", None) or ""
            if module == "pydantic.types" and "secret" in getattr(function, "__name__", ""):
                self.faults.append(
                    f"{where} is a secret, which is written as asterisks; write str, or send a reference to it. A flow "
                    "that only reads it can take it from a channel without a type"
                )
            if not module.startswith("pydantic"):
                return  # a serializer of the user's own: only the values show what it does
        if kind == "definition-ref":
            self._refer(schema["schema_ref"], where)
        for one in schema.get("definitions", ()):
            self._definitions[one["ref"]] = one
        if kind in ("model", "dataclass"):
            self.parts.add(schema["cls"])
        if kind in ("model", "dataclass", "typed-dict"):
            where, config = _name(schema.get("cls")), schema.get("config") or {}
        for name, field in _fields(schema):
            self._field(f"field {name} of {where}", name, field, config)
        for part in _parts(schema):
            self._look(part, where, config)

    def _refer(self, reference: str, where: str) -> None:
        """Read a definition once. A recursive one has values of any depth, and decoders have a limit."""
        if reference in self._open:
            self.plain = False
        if reference in self._read:
            return
        self._read.add(reference)
        self._open.add(reference)
        self._look(self._definitions.get(reference, {"type": "unknown"}), where, {})
        self._open.discard(reference)

    def _field(self, where: str, name: str, field: Schema, config: Schema) -> None:
        if field.get("serialization_exclude"):
            self.faults.append(
                f"{where} is excluded (exclude=True), so that no message holds it; write it without, or send another "
                "model that has no such field"
            )
        read, written = field.get("validation_alias"), field.get("serialization_alias") or name
        if read is not None or written != name:
            found = set(_names(read)) if read is not None and config.get("validate_by_alias", True) else set()
            if read is None or config.get("validate_by_name"):
                found.add(name)
            default = written if config.get("serialize_by_alias") else name
            self._aliases.append(Alias(where, frozenset(found), name, written, default))
        self.plain = self.plain and _is_plain(field)
        self._look(field["schema"], where, config)

    def _find_ways(self) -> list[bool | None]:
        written = {None: "default", True: "alias", False: "name"}
        ways = [way for way, how in written.items() if all(getattr(one, how) in one.read for one in self._aliases)]
        if any(len(one.read) > 1 for one in self._aliases):
            self.plain = False  # a name may be the alias of another field
        if not ways:
            lost = next((one for one in self._aliases if one.alias not in one.read), self._aliases[0])
            found = " or ".join(sorted(lost.read)) or "nothing"
            self.faults.append(
                f"{lost.field} is written as {lost.name} or {lost.alias}, and read as {found}, so that no flow finds "
                "it; write one alias=, or ConfigDict(validate_by_name=True)"
            )
        return ways


def _is_plain(schema: Schema) -> bool:
    """Whether nothing in a schema, apart from its parts, could change a value."""
    kind = schema["type"]
    allowed = PLAIN.get(kind)
    if allowed is None or schema.get("init") is False:
        return False
    if any(one not in allowed and one not in ALWAYS and _says(value) for one, value in schema.items()):
        return False
    if kind == "dict":
        return bool((schema.get("keys_schema") or {}).get("type") == "str")
    if kind == "enum":
        return all(type(one.value) is str for one in schema["members"])
    config = schema.get("config") or {}
    return config.keys() <= CONFIG or (
        config.keys() <= CONFIG | {"extra_fields_behavior"} and config["extra_fields_behavior"] != "allow"
    )


def _says(value: Any) -> bool:
    """Whether a key of a schema is set. A bound of 0 counts as set."""
    return value is not None and value is not False and value != []


def _fields(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The fields of a model, a dataclass or a TypedDict."""
    fields = schema.get("fields", {})
    if isinstance(fields, Mapping):
        yield from fields.items()
    else:
        yield from ((one["name"], one) for one in fields if isinstance(one, Mapping))


def _parts(schema: Schema) -> Iterator[Schema]:
    """The schemas within a schema."""
    for name in PARTS:
        part = schema.get(name, ())
        if isinstance(part, Mapping) and "type" in part:
            yield part
            continue
        for one in part.values() if isinstance(part, Mapping) else part:
            chosen = one[0] if isinstance(one, tuple) else one
            if isinstance(chosen, Mapping):
                yield chosen


def _names(alias: Any) -> Iterator[str]:
    """The names of a validation alias: a name, a path, or a choice of paths. Longer paths are never written."""
    if isinstance(alias, str):
        yield alias
    elif len(alias) == 1 and isinstance(alias[0], str):
        yield alias[0]
    elif alias and isinstance(alias[0], list):
        for one in alias:
            yield from _names(one)


def faithful(value: Any, where: str) -> bytes:
    """Return the JSON of a value without an annotation. `where` names it for errors.

    Raises TypeError, which says what to write instead, if JSON would change the value.
    """
    try:
        body = to_json(value)
        came = from_json(body)
    except ValueError as error:
        raise TypeError(f"{where}: {error}") from None
    try:
        check_finite(body)
    except ValueError:
        raise TypeError(f"{where}: JSON has no NaN and no infinity; write None or a text in their place") from None
    why = difference(value, came)
    if why:
        raise TypeError(
            f"{where}: this {_kind(value)} would not come out as it went in: {why}; write JSON's own types: "
            'model_dump(mode="json") of a model, list() of a tuple or a set, str() of others, and texts as keys'
        )
    return body


def difference(went: Any, came: Any, where: str = "") -> str:
    """Return where and how the decoded value `came` differs from the original `went`; empty if they are equal."""
    if _equal(went, came):
        return ""
    if isinstance(went, datetime) and isinstance(came, datetime):
        return _of_times(went, came, where)
    held, left = _held(went), _held(came)
    if held is None or left is None or not _alike(went, came):
        return f"{_at(where)}{_kind(went)}{_change(went, came)}"
    if lost := [name for name in held if name not in left]:
        return f"{_at(where)}{place(lost[0])} of {_kind(went)} is not in what comes out, a {_kind(came)}"
    if len(held) < len(left):
        return f"{_at(where)}it has less than what comes out"
    found = (difference(value, left[name], f"{where}.{place(name)}".lstrip(".")) for name, value in held.items())
    return next(filter(None, found), "")


def _of_times(went: datetime, came: datetime, where: str) -> str:
    """The difference of two times. Python takes times of different zones for unequal in an hour that repeats."""
    before, after = went.utcoffset(), came.utcoffset()
    if before is not None and after is not None and before != after:
        return f"{_at(where)}a datetime loses the seconds of its UTC offset, {before}; send it in UTC"
    if before == after and went.replace(tzinfo=None, fold=0) == came.replace(tzinfo=None, fold=0):
        return ""
    return f"{_at(where)}{_kind(went)}{_change(went, came)}"


def _alike(went: Any, came: Any) -> bool:
    """Whether two values with equal contents are equal: a subclass may stand for its model."""
    objects = isinstance(came, BaseModel) or dataclasses.is_dataclass(came)
    return isinstance(went, type(came)) if objects else type(went) is type(came)


def _held(value: Any) -> dict[Any, Any] | None:
    """The contents of a value by name, key or index; None if it is no container. Private attributes do not count."""
    if isinstance(value, BaseModel):
        names = type(value).model_fields
        return {name: getattr(value, name) for name in names if hasattr(value, name)} | (value.model_extra or {})
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if hasattr(value, one.name)}
    if isinstance(value, dict):
        return value
    return dict(enumerate(value)) if isinstance(value, list | tuple) else None


def _equal(went: Any, came: Any) -> bool:
    try:
        return bool(went == came)
    except Exception:
        return False  # arrays and others whose comparison has no truth value


def _change(went: Any, came: Any) -> str:
    if isinstance(went, float) and not isfinite(went):
        return f" is {went}, and JSON has no NaN and no infinity"
    if type(went) is type(came):
        return " is changed each time that it is read, by a validator or a serializer"
    return f" comes out as {_kind(came)}"


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _kind(value: Any) -> str:
    return type(value).__name__


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
