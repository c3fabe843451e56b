"""Signatures: the parameters of a handler and their annotations, read when they are needed."""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, get_type_hints

from flowkit.errors import DefinitionError


class Signature:
    """The parameters of a flow's handler, and what its annotations say."""

    def __init__(self, flow: str, function: Callable[..., Any]) -> None:
        self.flow = flow
        self.function = function

    def wrong(self, what: str) -> DefinitionError:
        """The error for a mistake in the definition of the flow."""
        return DefinitionError(f"flow {self.flow}: {what}")

    @cached_property
    def parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())

    @property
    def first(self) -> inspect.Parameter:
        """The first parameter. Raises DefinitionError where there is none."""
        if not self.parameters:
            raise self.wrong("its handler takes no body; its first parameter receives the message's body")
        return self.parameters[0]

    @cached_property
    def hints(self) -> dict[str, Any]:
        """The annotations. Raises DefinitionError for one that names what is not there."""
        try:
            return get_type_hints(self.function)
        except NameError as error:
            raise self.wrong(f"its annotation cannot be resolved: {error}; define or import that name") from None

    @cached_property
    def annotated(self) -> dict[str, Any]:
        """The same, with what stands beside the types in `Annotated`."""
        return get_type_hints(self.function, include_extras=True) if self.hints else {}
