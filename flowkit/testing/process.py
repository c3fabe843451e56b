"""A process of a proof, and the errors that it reports."""

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
    """An error of the scenario or the flows, with its place."""


class Unrepeatable(FlowKitError):
    """The scenario ends differently without a crash, or does nothing, so crashes cannot be judged."""


class Process:
    """A forked process and the pipe to it. A context manager, which kills the process."""

    def __init__(self, name: str, role: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("fork")
        self._name = name
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=self._run, args=(pipe, role, *arguments))
        with warnings.catch_warnings():
            # From Python 3.12 on, a fork beside threads warns; the child uses none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        pipe.close()

    def say(self, what: object) -> None:
        """Send an object to the process. If the process is gone, `hear` reports it."""
        with suppress(ConnectionError):
            self._pipe.send(what)

    def hear(self) -> Any:
        """Read the process's next answer. Blocks. Raises the error that it sent, or ScenarioFailed if it is gone."""
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
        """Wait until the process ends. Blocks. Raises the error that it sent."""
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
        gc.freeze()  # a collection would touch all objects, and so copy the memory shared with the parent
        self._pipe.close()  # so that this process notices when the other one is gone
        logging.getLogger("flowkit").setLevel(logging.ERROR)  # dead workers are expected here
        try:
            role(pipe, *arguments)
        except BaseException as error:
            pipe.send(error if isinstance(error, Unrepeatable) else _failed(error))
        finally:
            pipe.close()
            os._exit(0)  # runs no exit handlers of the parent program


def _failed(error: BaseException) -> ScenarioFailed:
    """An error in a form that can be sent between processes, with the user's line that raised it."""
    steps = traceback.extract_tb(error.__traceback__)
    where = [f" (at {Path(step.filename).name}:{step.lineno})" for step in steps if is_own(step.filename)]
    return ScenarioFailed(f"{type(error).__name__}: {error}{''.join(where[-1:])}")
