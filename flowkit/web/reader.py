"""The reader: it validates requests by their flows' annotations, large ones in a separate process.

Reading one MiB of JSON holds the interpreter lock for 50 to 150 ms on any thread, and no other request would be
answered meanwhile. The process is forked, so that it runs the same code as its worker.
"""

import asyncio
import gc
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import NamedTuple

from pydantic_core import from_json

from flowkit.errors import Undecodable
from flowkit.fork import part_with
from flowkit.model.flow import Flow
from flowkit.web.content import FREE
from flowkit.web.problem import RETRY_SECONDS, Problem
from flowkit.web.route import Arguments, Header, RequestBinding

READ_SECONDS = 10.0
"""Longest time in seconds to read one content."""
LIFE_SECONDS = 20.0
"""Life of a reading process in seconds. Its end frees its memory, and the state that it copied from the worker's
background threads."""
AS_IT_CAME = b""
"""Stands for a body equal to the content, which need not be sent back. No body of a large content is empty."""


class Read(NamedTuple):
    """The message of a request."""

    body: bytes
    """Body of the message."""
    key: str | None
    """The id that `id_from` finds in the body; None if `id_from` is a header or not set."""


class Refusal(NamedTuple):
    """The reason why a request does not match its flow's annotations."""

    status: HTTPStatus
    detail: str


def read(flow: Flow, path: Mapping[str, str], query: Sequence[tuple[str, str]], content: bytes) -> Read | Refusal:
    """Read a request to a flow by its annotations. Holds the interpreter while it runs."""
    assert isinstance(flow.binding, RequestBinding)
    arguments = flow.binding.arguments
    try:
        body = arguments.pack(path, query, content)
        found = flow.id_from is not None and not isinstance(flow.id_from, Header)
        return Read(body, flow.identifier.key(body) if found else None)
    except Undecodable as error:
        return Refusal(_status(arguments, content), str(error))


def _status(arguments: Arguments, content: bytes) -> HTTPStatus:
    """400 for content that is not JSON; 422 for JSON that does not match the route."""
    if arguments.body is not None and arguments.body.raw is None:
        try:
            from_json(content, allow_inf_nan=False)
        except ValueError:
            return HTTPStatus.BAD_REQUEST
    return HTTPStatus.UNPROCESSABLE_ENTITY


class Reader:
    """Reads requests for the event loop: small ones directly, large ones one at a time in another process."""

    def __init__(self, flows: Mapping[str, Flow]) -> None:
        self._flows = flows
        self._thread = ThreadPoolExecutor(1, "flowkit-reader")
        """The only thread that talks to the process, so that it reads one request at a time."""
        self._process: ForkProcess | None = None
        self._since = 0.0
        self._closed = False
        self._pipe: Connection | None = None
        part_with(self, lambda one: [] if one._pipe is None or one._pipe.closed else [one._pipe.fileno()])

    async def read(self, flow: Flow, path: Mapping[str, str], query: Sequence[tuple[str, str]], content: bytes) -> Read:
        """Read a request. Raises Problem if it does not match the flow, or if the reading process failed."""
        if len(content) <= FREE:
            found = read(flow, path, query, content)
        else:
            loop = asyncio.get_running_loop()
            ask = partial(self._ask, flow.name, path, query, content)
            found = await loop.run_in_executor(self._thread, ask)
            loop.call_later(LIFE_SECONDS, self._later)
        if isinstance(found, Refusal):
            raise Problem(found.status, found.detail)
        return found

    def close(self) -> None:
        """Stop reading, also the content that is being read. Blocks."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        process = self._process
        if process is not None:
            process.kill()
        self._thread.shutdown()
        self._end()

    def _ask(
        self, flow: str, path: Mapping[str, str], query: Sequence[tuple[str, str]], content: bytes
    ) -> Read | Refusal:
        """Have the process read a request. Blocks; called on the reader's thread. Raises Problem."""
        try:
            pipe = self._pipe or self._begin()
            pipe.send((flow, path, query, content))
            if not pipe.poll(READ_SECONDS):
                self._end()
                raise _given_up(f"the content was not read within {READ_SECONDS:g} s")
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise _given_up(
                f"the process that reads content ended, or did not start ({type(error).__name__})"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"a content could not be read: {answer}")
        found: Read | Refusal = answer
        return found._replace(body=content) if isinstance(found, Read) and found.body == AS_IT_CAME else found

    def _begin(self) -> Connection:
        """Start the process. Raises OSError."""
        from multiprocessing import get_context

        forking = get_context("fork")
        self._pipe, other = forking.Pipe()
        with other:
            process = forking.Process(target=_serve, args=(self._flows, other), name="flowkit-reader", daemon=True)
            process.start()
        self._process, self._since = process, time.monotonic()
        return self._pipe

    def _end(self) -> None:
        """Kill the process. Blocks until it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _later(self) -> None:
        """Check the age of the process on the reader's thread."""
        if not self._closed:
            self._thread.submit(self._end_if_old)

    def _end_if_old(self) -> None:
        if time.monotonic() - self._since >= LIFE_SECONDS:
            self._end()


def _given_up(why: str) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}; nothing was accepted", RETRY_SECONDS)


def _serve(flows: Mapping[str, Flow], pipe: Connection) -> None:
    """Run the reading process. It ends with its worker, which holds the other end of the pipe."""
    gc.freeze()  # keeps the worker's memory shared
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all of its processes
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            name, path, query, content = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, 2 * READ_SECONDS)  # ends this process even if its worker is dead
        try:
            answer: Read | Refusal | str = read(flows[name], path, query, content)
            if isinstance(answer, Read) and answer.body is content:
                answer = answer._replace(body=AS_IT_CAME)
        except Exception:
            answer = traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(answer)
