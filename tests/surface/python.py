"""What programs import: signatures, members and errors."""

import ast
import contextlib
import importlib
import inspect
from types import FunctionType
from typing import Any

from .package import Lines, errors, plain

DOORS = ("flowkit", "flowkit.web", "flowkit.testing")
"""The modules whose `__all__` users import from."""
SUITES = ("StoreConformance", "TransportConformance")
"""The suites in `flowkit.testing.conformance`, which implementers of ports run."""
CALLED = ("__call__", "__enter__", "__exit__", "__iter__")
"""Methods that users call without their name."""


class Bare(str):
    """An annotation as it is written, without the quotes of a forward reference."""

    def __repr__(self) -> str:
        return str(self)


def annotated(annotation: Any) -> Any:
    return Bare(annotation) if isinstance(annotation, str) else annotation


def signature(call: Any, bound: bool = False) -> str:
    """The parameters, their defaults and the result; without `self` when it is bound."""
    found = inspect.signature(call)
    parameters = [one.replace(annotation=annotated(one.annotation)) for one in found.parameters.values()]
    shown = found.replace(
        parameters=parameters[1:] if bound else parameters, return_annotation=annotated(found.return_annotation)
    )
    return plain(str(shown))


def own(kind: type) -> list[type]:
    return [one for one in kind.__mro__ if one.__module__.partition(".")[0] == "flowkit"]


def attributes(kind: type) -> set[str]:
    """The public attributes that the constructors set."""
    found = set()
    for one in own(kind):
        for node in ast.walk(ast.parse(inspect.getsource(one))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                targets = [one for one in ast.walk(node) if isinstance(one, ast.Attribute)]
                stored = [one for one in targets if isinstance(one.ctx, ast.Store) and ast.unparse(one.value) == "self"]
                found |= {one.attr for one in stored if not one.attr.startswith("_")}
    return found


def member(kind: type, name: str) -> str | None:
    """How a member is used; None when it is not FlowKit's."""
    static = inspect.getattr_static(kind, name)
    if not any(name in vars(one) for one in own(kind)):
        return None
    if isinstance(static, property):
        return f" -> {signature(static.fget, bound=True).partition(' -> ')[2]}"
    if isinstance(static, classmethod | staticmethod):
        return signature(getattr(kind, name))
    if isinstance(static, FunctionType):
        return signature(static, bound=True)
    return f" = {plain(repr(static))}" if isinstance(static, str | int | float | tuple | None) else ""


def of_class(path: str, kind: type) -> Lines:
    bases = ", ".join(one.__name__ for one in kind.__bases__ if one is not object)
    yield f"python {path}: class({bases})"
    with contextlib.suppress(ValueError):
        yield f"python {path}{signature(kind)}"
    fields = set(getattr(kind, "_fields", ()))  # the signature of a named tuple has them
    names = {name for name in dir(kind) if not name.startswith(("_", "test_")) or name in CALLED} - fields
    for name in names:
        shown = member(kind, name)
        if shown is not None:
            yield f"python {path}.{name}{shown}"
    yield from (f"python {path}.{name}" for name in attributes(kind) - names - fields)


def of_python() -> Lines:
    for door in DOORS:
        module = importlib.import_module(door)
        for name in module.__all__:
            one, path = getattr(module, name), f"{door}.{name}"
            if isinstance(one, type):
                yield from of_class(path, one)
            elif hasattr(one, "__origin__"):
                yield f"python {path}: {plain(repr(one))}"
            else:
                yield f"python {path}{signature(one)}"
    suites = importlib.import_module("flowkit.testing.conformance")
    for name in SUITES:
        yield from of_class(f"flowkit.testing.conformance.{name}", getattr(suites, name))


def of_errors() -> Lines:
    """Each error with its bases: users catch it by one of them."""
    for kind in errors():
        yield f"error {kind.__name__}: {', '.join(one.__name__ for one in kind.__bases__)}"
