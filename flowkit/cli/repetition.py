"""Repetition: repeated log lines are written a few times, and then counted."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

WINDOW_SECONDS = 10.0
SAME = 5
"""Most lines of one kind and error that are written in a window."""
DIFFERENT = 20
"""Most errors of one kind of line that are counted separately in a window. The others count as one error: together, at
most 105 lines of a kind are written."""


class Kind(NamedTuple):
    """The parts that repeated lines have in common: logger, level, text, and the error that ends the line."""

    logger: str
    level: int
    text: str
    error: str


class Repetition:
    """Counts the log lines of a window. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = 0.0
        self._counts: dict[Kind, int] = {}
        self._last: dict[Kind, logging.LogRecord] = {}
        self._different: dict[Kind, int] = {}

    @property
    def over(self) -> bool:
        """Whether a window with lines is over, so that `counts` should be called."""
        return bool(self._counts) and self._clock() >= self._end

    def admits(self, record: logging.LogRecord) -> bool:
        """Count a line. Returns whether to write it."""
        if not self._counts:
            self._end = self._clock() + WINDOW_SECONDS
        kind = self._kind(record)
        self._counts[kind] = count = self._counts.get(kind, 0) + 1
        if count > SAME:
            self._last[kind] = record
        return count <= SAME

    def counts(self) -> Iterator[logging.LogRecord]:
        """End the window. Yields one record for each kind with lines that were not written."""
        counts, last = self._counts, self._last
        self._counts, self._last, self._different = {}, {}, {}
        for kind, record in last.items():
            told = logging.makeLogRecord(record.__dict__)
            more, said = counts[kind] - SAME, record.getMessage()
            told.msg = f"{more:,} more line{'s'[: more > 1]} like this one, within {WINDOW_SECONDS:g} s: {said}"
            told.args, told.exc_info, told.exc_text = (), None, None
            yield told

    def _kind(self, record: logging.LogRecord) -> Kind:
        every = Kind(record.name, record.levelno, str(record.msg), "")
        if not isinstance(record.args, tuple) or not record.args:
            return every
        kind = every._replace(error=str(record.args[-1]))
        if kind not in self._counts:
            known = self._different.get(every, 0)
            if known >= DIFFERENT:
                return every
            self._different[every] = known + 1
        return kind
