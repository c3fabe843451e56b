"""The modules of the FlowKit that this Python imports, searched by name or kind.

Nothing here knows where in the package something is: code that moves is found again.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

Lines = Iterator[str]


def modules() -> Iterator[ModuleType]:
    """Every module of the package."""
    package = importlib.import_module("flowkit")
    yield package
    for found in pkgutil.walk_packages(package.__path__, "flowkit."):
        if "migrations" not in found.name and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


class Package:
    """The modules of FlowKit, searched by name or kind."""

    def __init__(self) -> None:
        self.modules = list(modules())
        self.objects = [
            (module, name, one) for module in self.modules for name, one in vars(module).items() if name[:2] != "__"
        ]

    def named(self, name: str) -> Any:
        """The class or function of this name."""
        found = [one for module, its, one in self.objects if its == name and one.__module__ == module.__name__]
        if len(found) != 1:
            raise LookupError(f"{len(found)} things are named {name}")
        return found[0]

    def constants(self, name: str) -> set[Any]:
        return {one for _, its, one in self.objects if its == name}

    def that(self, suits: Callable[[Any], bool]) -> Any:
        """The one object that suits."""
        (found,) = {id(one): one for _, _, one in self.objects if suits(one)}.values()
        return found

    def trees(self) -> Iterator[tuple[ModuleType, ast.Module]]:
        for module in self.modules:
            yield module, ast.parse(inspect.getsource(module))


def made(kind: Callable[..., Any], **parts: Any) -> Any:
    """An object of this kind, from those of the parts that its constructor names."""
    return kind(**{name: parts[name] for name in inspect.signature(kind).parameters if name in parts})


def plain(text: str) -> str:
    """Without the modules where things live, and without addresses."""
    text = re.sub(r"\b(?:flowkit|typing|collections|sqlalchemy|starlette)(?:\.[a-z_]\w*)*\.(?=\w)", "", text)
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", text).split())


def errors() -> list[type[Exception]]:
    """The errors of FlowKit that have a name for others, each after its base."""
    kinds: list[type[Exception]] = [importlib.import_module("flowkit").FlowKitError]
    for kind in kinds:
        kinds += [one for one in kind.__subclasses__() if not one.__name__.startswith("_")]
    return kinds


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON document, each with its path; without prose."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            if key not in ("description", "title", "summary"):
                yield from leaves(one, f"{path} {key}".strip())
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for one in value:
            yield from leaves(one, f"{path} []".strip())
    else:
        yield path, value
