"""A thread with an asyncio event loop, on which many tasks wait for the network without a thread each."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, TypeVar

CLOSE_SECONDS = 2.0
"""Seconds that cancelled tasks of a loop may take to finish."""
T = TypeVar("T")


class Loop:
    """An event loop on a thread of its own, from construction until `close`."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Schedule a function on the loop's thread. Any thread may call this; it does not block."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop's thread, and return or raise its result. Blocks; not for the loop's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @contextmanager
    def hold(self, resource: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Hold an asynchronous context manager open. One task enters and leaves it, as some libraries require."""
        entered: Future[T] = Future()
        leave = asyncio.Event()

        async def enter() -> None:
            try:
                async with resource as given:
                    entered.set_result(given)
                    await leave.wait()
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        held = asyncio.run_coroutine_threadsafe(enter(), self._loop)
        try:
            yield entered.result()
        finally:
            self.call(leave.set)
            held.result()

    def _run(self) -> None:
        ended = False
        while not ended:
            with suppress(KeyboardInterrupt, SystemExit):  # asyncio raises a task's here too; other tasks continue
                self._loop.run_forever()
                ended = True

    def close(self) -> None:
        """Cancel the running tasks, and end the thread. Blocks."""

        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

        self.run(cancel())
        self.call(self._loop.stop)
        self._thread.join()
        self._loop.close()
