"""Logs on standard error: lines of text, or a JSON object each."""

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
"""What the loggers of handlers say of their message."""
LIBRARIES = ("asyncio", "pika", "sqlalchemy", "uvicorn")
PACKAGE = os.path.dirname(flowkit.__file__) + os.sep
LINES = 10_000
"""This many lines may wait to be written. Further ones are dropped."""
ATOMIC_BYTES = select.PIPE_BUF
"""Processes that share a pipe do not mix what each writes at once, up to this size."""
LOOK_SECONDS = 1.0
"""How often the log looks whether there is a count to tell of."""
FLUSH_SECONDS = 1.0
"""Longest wait for the last lines to be written, in seconds."""
STANDARD_ERROR = 2


class JsonFormatter(logging.Formatter):
    """One object a line, with the trace in which it was written."""

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
    """Formats log records as plain text: a record is one line, whatever its parts hold, and a traceback is set in."""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = indent(plain(exception(record, self), ENDS), "  ") if record.exc_info else None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record))

    def formatStack(self, stack_info: str) -> str:
        return indent(plain(stack_info, ENDS), "  ")


def exception(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """The traceback of a record. One that FlowKit logs, or a library under it, has no data; the app's is its own."""
    assert record.exc_info
    error = record.exc_info[1]
    return stack(error) if error is not None and is_house(record) else formatter.formatException(record.exc_info)


def is_house(record: logging.LogRecord) -> bool:
    """Whether a record is FlowKit's, or a library's under it: not the app's."""
    return record.pathname.startswith(PACKAGE) or str(record.name).partition(".")[0] in LIBRARIES


class LogWriter(logging.Handler):
    """Writes lines to a descriptor, on a thread of its own. No other thread waits for it: nobody may read the pipe.
    Lines that find no room are dropped and counted, and the log says how many when it goes on."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(LINES)
        self._refused = 0
        """Lines that found no room."""
        self._threaded = True
        self._repetition = Repetition()
        """Of lines that are FlowKit's own."""
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
        """Wait until the lines are written, at most FLUSH_SECONDS. Blocks."""
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
        """A forked child has no such thread: it writes its lines itself."""
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
        """Write all of it; it is lost if nobody can read it any more. Blocks."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                return


def log(settings: Settings) -> None:
    """Write the logs of this process as the settings say. Raises ConfigError."""
    known = logging.getLevelNamesMapping()
    level = known.get(settings.log_level.upper())
    if level is None:
        raise ConfigError(f"FLOWKIT_LOG_LEVEL is {settings.log_level!r}; write DEBUG, INFO, WARNING or ERROR")
    plain = PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler = LogWriter(STANDARD_ERROR)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else plain)
    logging.basicConfig(level=level, handlers=[handler])
    if level > logging.DEBUG:  # that each of a worker's servers starts and ends is no news
        logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))
