"""A process of a proof, and what it says of its end."""

import gc
import logging
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flowkit.errors import FlowKitError
from flowkit.testing.points import is_own


class ScenarioFailed(FlowKitError):
    """The error of the scenario or the flows, and its place."""


class Unrepeatable(FlowKitError):
    """The scenario ends differently without any crash, or does nothing: nothing can be said about crashes."""


class Process:
    """A process that is forked from this one, and the pipe to it. A context manager, which kills it."""

    def __init__(self, name: str, role: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("fork")
        self._name = name
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=self._run, args=(pipe, role, *arguments))
        with warnings.catch_warnings():
            # From Python 3.12 on, where the program has threads: the child uses none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        pipe.close()

    def say(self, what: object) -> None:
        """Tell it something. That it is gone will be heard."""
        with suppress(ConnectionError):
            self._pipe.send(what)

    def hear(self) -> Any:
        """Read its next answer. Raises ScenarioFailed with what it raised, or when it is gone."""
        try:
            said = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise ScenarioFailed(
                f"the process of the {self._name} ended with {self._process.exitcode} before it was done"
            ) from None
        if isinstance(said, BaseException):
            raise said
        return said

    def end(self) -> None:
        """Wait until it ends. Raises ScenarioFailed with what it raises there."""
        said: object = None
        with suppress(EOFError, ConnectionError):
            said = self._pipe.recv()
        if isinstance(said, BaseException):
            raise said
        self._process.join()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _run(self, pipe: Connection, role: Callable[..., None], *arguments: object) -> None:
        gc.freeze()  # a collection would look at all that this program made, and so copy the memory that it shares
        self._pipe.close()  # so that this process hears it when the other one is gone
        logging.getLogger("flowkit").setLevel(logging.ERROR)  # that workers are gone is no news here
        try:
            role(pipe, *arguments)
        except BaseException as error:
            pipe.send(error if isinstance(error, Unrepeatable) else _failed(error))
        finally:
            pipe.close()
            os._exit(0)  # nothing that this program registered for its own end


def _failed(error: BaseException) -> ScenarioFailed:
    """An error as it can pass between processes, with the user's line that raised it."""
    steps = traceback.extract_tb(error.__traceback__)
    where = [f" (at {Path(step.filename).name}:{step.lineno})" for step in steps if is_own(step.filename)]
    return ScenarioFailed(f"{type(error).__name__}: {error}{''.join(where[-1:])}")
