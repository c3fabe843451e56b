"""Logs on standard error: each record is text or one JSON object."""

import json
import logging
import os
import queue
import select
import threading
import traceback
from datetime import UTC, datetime
from textwrap import indent

import flowkit
from flowkit.cli.repetition import Repetition
from flowkit.disclosure import stack
from flowkit.errors import ConfigError
from flowkit.plain import ENDS, plain
from flowkit.settings import Settings
from flowkit.telemetry import ids

FIELDS = ("flow", "message_id", "correlation_id")
"""Fields by which a handler's log lines name their message."""
LIBRARIES = ("asyncio", "pika", "sqlalchemy", "uvicorn")
PACKAGE = os.path.dirname(flowkit.__file__) + os.sep
LINES = 10_000
"""Most lines that may wait to be written. Further lines are dropped."""
ATOMIC_BYTES = select.PIPE_BUF
"""Largest write to a pipe in bytes that other processes' writes cannot interrupt."""
LOOK_SECONDS = 1.0
"""Longest time in seconds until a count of repeated lines is noticed."""
FLUSH_SECONDS = 1.0
"""Longest wait for the last lines to be written, in seconds."""
STANDARD_ERROR = 2


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object on a line, with the ids of its trace."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in FIELDS if hasattr(record, name)},
            **ids(),
        }
        if record.exc_info:
            found["exception"] = exception(record, self)
        return json.dumps(found, ensure_ascii=True, default=str)


class PlainFormatter(logging.Formatter):
    """Formats each record as one line of plain text without control characters, with an indented traceback."""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = indent(plain(exception(record, self), ENDS), "  ") if record.exc_info else None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record))

    def formatStack(self, stack_info: str) -> str:
        return indent(plain(stack_info, ENDS), "  ")


def exception(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """The traceback of a record: without data of messages if FlowKit or its libraries log it, else complete."""
    assert record.exc_info
    error = record.exc_info[1]
    return stack(error) if error is not None and is_house(record) else formatter.formatException(record.exc_info)


def is_house(record: logging.LogRecord) -> bool:
    """Whether FlowKit or one of its libraries logged a record, and not the app."""
    return record.pathname.startswith(PACKAGE) or str(record.name).partition(".")[0] in LIBRARIES


class LogWriter(logging.Handler):
    """Writes lines to a file descriptor on its own thread. No other thread waits for it, because the pipe may have no
    reader. When LINES lines wait, further lines are dropped; the log says how many when it continues."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(LINES)
        self._refused = 0
        """Lines dropped so far."""
        self._threaded = True
        self._repetition = Repetition()
        """Counts repeated lines of FlowKit and its libraries."""
        os.register_at_fork(after_in_child=self._stand_alone)
        threading.Thread(target=self._keep_writing, name="flowkit-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if not self._threaded or not is_house(record) or self._repetition.admits(record):
            self._emit(record)

    def _emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:
            line = f"a line of the log cannot be written: {record.msg!r}\n{traceback.format_exc()}".encode()
        if not self._threaded:
            self._write(line)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._refused += 1

    def flush(self) -> None:
        """Wait until the lines are written, for FLUSH_SECONDS at most. Blocks."""
        lines = self._lines
        if self._threaded:
            self._tell_repetition()
            with lines.all_tasks_done:
                lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, FLUSH_SECONDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _tell_repetition(self) -> None:
        assert self.lock is not None
        with self.lock:  # as `handle` does around `emit`
            for record in self._repetition.counts():
                self._emit(record)

    def _stand_alone(self) -> None:
        """In a forked child, write lines directly: the thread does not exist there."""
        self._threaded = False

    def _keep_writing(self) -> None:
        told, waiting = 0, self._lines.queue
        while True:
            if self._repetition.over:
                self._tell_repetition()
            try:
                together = [self._lines.get(timeout=LOOK_SECONDS)]
            except queue.Empty:
                together = []
            while waiting and sum(map(len, together)) + len(waiting[0]) <= ATOMIC_BYTES:
                together.append(self._lines.get())
            refused = self._refused
            self._write(b"".join(together))
            if refused > told:
                text = f"{refused - told} lines of the log were dropped: it was not read as fast as it was written"
                said = {"name": "flowkit.log", "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
                self._write(self._line(logging.makeLogRecord(said)))
                told = refused
            for _ in together:
                self._lines.task_done()

    def _write(self, line: bytes) -> None:
        """Write the whole line; drop it if the descriptor has no reader any more. Blocks."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                return


def log(settings: Settings) -> None:
    """Configure the logging of this process by the settings. Raises ConfigError."""
    known = logging.getLevelNamesMapping()
    level = known.get(settings.log_level.upper())
    if level is None:
        raise ConfigError(f"FLOWKIT_LOG_LEVEL is {settings.log_level!r}; write DEBUG, INFO, WARNING or ERROR")
    plain = PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler = LogWriter(STANDARD_ERROR)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else plain)
    logging.basicConfig(level=level, handlers=[handler])
    if level > logging.DEBUG:  # starts and stops of a worker's HTTP servers are noise
        logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))
