"""The program's log: stdlib ``logging`` in front, one writing thread behind.

    log = logs.get(__name__)
    log.info("topic made", topic=name, partitions=12)      # the message is constant, what varies are fields
    log.warning("device refused", device_id=id, exc_info=error)

Nobody who logs waits for a terminal or a disk: a record goes into a bounded queue, and what finds it full is dropped,
counted, and told once there is room. The same message again and again is told a few times, then summed up. Records of
other libraries take the same way, from levels of their own. What never appears in a line: ``logs_lines``.

Before ``configure``, and after ``close``, ``get`` logs to whatever handlers plain ``logging`` has.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TextIO

from keystone.config import LogsConfig
from keystone.logs_lines import FIELDS, OURS, Line, as_json, as_text, brief, captured, device, payload, user
from keystone.logs_writer import Output, Repeated, Repeats, Writer

__all__ = ["Log", "Logging", "Recent", "adopt", "configure", "device", "get", "payload", "user"]

CLOSE_WAIT_S: Final = 2.0  # for what is queued: 2 x 4,096 records x ~250 B = 2 MB, at 1 MB/s; a person who pressed Ctrl-C waits no longer
RECENT_LINES_MAX: Final = 20
RECENT_CHARS_MAX: Final = 300  # x 20 lines = 6 kB in an actor's answer, four times a second

#: Levels of libraries, unless ``logs.levels`` says otherwise; any other's is that of "root".
LIBRARIES: Final = {
    "root": logging.WARNING,
    "kafka": logging.CRITICAL,  # kafka-python writes 160-330 lines with tracebacks for each restart of a broker; we tell what matters
    "ray": logging.ERROR,
    "asyncio": logging.WARNING,
    "urllib3": logging.WARNING,
}
#: Libraries that write past the root logger once they are imported.
WITH_HANDLERS: Final = ("ray",)

#: What ``logging`` finds out for each record and no line of ours shows: a third of what a record costs.
UNUSED: Final = ("logThreads", "logMultiprocessing", "logProcesses", "logAsyncioTasks")

ExcInfo = bool | BaseException | tuple[Any, Any, Any] | None


class Log:
    """A logger whose keywords are fields of the record. Messages are constant text, or ``%`` text with arguments as in stdlib.

    ``exc_info``: True for the exception being handled, or an exception. Cheap where the level is off; a repeat that is
    not shown costs no record. Whatever is wrong with message, arguments or fields, nothing raises.
    """

    __slots__ = ("_is_enabled_for", "_logger")

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._is_enabled_for = logger.isEnabledFor

    def debug(self, message: str, /, *args: object, exc_info: ExcInfo = None, **fields: object) -> None:
        if self._is_enabled_for(logging.DEBUG):
            self._log(logging.DEBUG, message, args, exc_info, fields)

    def info(self, message: str, /, *args: object, exc_info: ExcInfo = None, **fields: object) -> None:
        if self._is_enabled_for(logging.INFO):
            self._log(logging.INFO, message, args, exc_info, fields)

    def warning(self, message: str, /, *args: object, exc_info: ExcInfo = None, **fields: object) -> None:
        if self._is_enabled_for(logging.WARNING):
            self._log(logging.WARNING, message, args, exc_info, fields)

    def error(self, message: str, /, *args: object, exc_info: ExcInfo = None, **fields: object) -> None:
        if self._is_enabled_for(logging.ERROR):
            self._log(logging.ERROR, message, args, exc_info, fields)

    def exception(self, message: str, /, *args: object, exc_info: ExcInfo = True, **fields: object) -> None:
        """``error`` with the exception being handled."""
        self.error(message, *args, exc_info=exc_info, **fields)

    def is_enabled_for(self, level: int) -> bool:
        """Whether a record of that level of ``logging`` would be made: ask before preparing costly fields."""
        return self._is_enabled_for(level)

    def _log(self, level: int, message: str, args: tuple[object, ...], exc_info: ExcInfo, fields: dict[str, object]) -> None:
        current = Logging.current
        if current is not None and not current.admits(self._logger.name, level, message):
            return
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif exc_info and not isinstance(exc_info, tuple):
            exc_info = sys.exc_info()
        record = self._logger.makeRecord(self._logger.name, level, "(unknown file)", 0, message, args, exc_info or None)  # type: ignore[arg-type]
        record.__dict__[FIELDS] = fields
        self._logger.handle(record)


def get(name: str) -> Log:
    """``log = logs.get(__name__)``."""
    return Log(logging.getLogger(OURS if name == "__main__" else name))


class Recent(logging.Handler):
    """The last warnings and errors as short plain lines, and how many there were: an actor's ``status()`` hands them to its driver.

    A handler like any other, which keeps instead of writing. Any thread may add and drain.
    """

    def __init__(self, lines_max: int = RECENT_LINES_MAX) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[Line] = deque(maxlen=lines_max)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.add(captured(record))

    def add(self, line: Line, times: int = 1) -> None:
        """``times``: how many records it stands for."""
        with self._guard():
            self._lines.append(line)
            self._count += times

    def drain(self) -> tuple[int, list[str]]:
        """How many there were since the last time, and the last of them, oldest first."""
        with self._guard():
            count, lines = self._count, list(self._lines)
            self._count = 0
            self._lines.clear()
        return count, [brief(line, RECENT_CHARS_MAX) for line in lines]

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


class _Handler(logging.Handler):
    """Hands every record on, without a lock."""

    def __init__(self, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._take = take

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


class Logging:
    """What ``configure`` set up, until ``close``."""

    current: ClassVar[Logging | None] = None

    def __init__(self, config: LogsConfig, output: Output, role: str) -> None:
        self.recent = Recent()
        self._levels = levels_of(config)
        self._repeats = Repeats(config.repeats_max, config.repeat_window_ms)
        self._role = role
        is_human = config.format == "human" or (config.format == "auto" and output.is_terminal)
        has_colours = output.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._render = partial(as_text, role=role, has_colours=has_colours) if is_human else self._as_json
        self._output = output
        self._writer = Writer(output, self._render, config.queue_records_max, self._repeats, self._summary)
        self._handler = _Handler(self._take)
        self._before: list[Callable[[], None]] = []

    @property
    def dropped(self) -> int:
        """Records that were not written: the queue was full, or the output refused them."""
        return self._writer.dropped

    def admits(self, logger: str, level: int, message: object) -> bool:
        """Count a record of that message, before its arguments; False where it was shown often enough."""
        return self._repeats.admits(logger, level, message if isinstance(message, str) else type(message).__name__, time.monotonic())

    def flush(self, wait_s: float = CLOSE_WAIT_S) -> bool:
        """Wait until everything logged so far is written; False where that took longer."""
        return self._writer.flush(wait_s)

    def close(self) -> None:
        """Write what is queued, within ``CLOSE_WAIT_S``, and leave ``logging`` as it was. May be repeated."""
        if Logging.current is not self:
            return
        Logging.current = None
        atexit.unregister(self.close)
        logging.root.removeHandler(self._handler)
        for undo in reversed(self._before):
            undo()
        if self._writer.close(CLOSE_WAIT_S):
            self._output.close()

    def open(self) -> Logging:
        """Become the one that is current."""
        Logging.current = self
        atexit.register(self.close)
        for flag in filter(partial(hasattr, logging), UNUSED):
            self._before.append(partial(setattr, logging, flag, getattr(logging, flag)))
            setattr(logging, flag, False)
        for name, level in self._levels.items():
            logger = logging.getLogger(name)
            self._before.append(partial(logger.setLevel, logger.level))
            logger.setLevel(level)
        self.adopt(*WITH_HANDLERS)
        logging.root.addHandler(self._handler)
        return self

    def adopt(self, *names: str) -> None:
        for name in names:
            logger = logging.getLogger(name)
            self._before += [partial(logger.setLevel, logger.level), partial(setattr, logger, "propagate", logger.propagate)]
            self._before += [partial(logger.addHandler, handler) for handler in reversed(logger.handlers)]  # undone last first
            for handler in tuple(logger.handlers):
                logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(self._levels.get(name, logging.NOTSET))

    def reset(self) -> None:
        """Start anew in a forked child; what was logged so far is the parent's to write."""
        self.recent = Recent()
        self._repeats.reset()
        self._writer.reset()

    def _take(self, record: logging.LogRecord) -> None:
        try:
            if FIELDS not in record.__dict__ and not self.admits(record.name, record.levelno, record.msg):
                return
            line = captured(record)
            if line.level >= logging.WARNING:
                self.recent.add(line)
            self._writer.put(line)
        except Exception:  # noqa: BLE001 - nobody's work fails for what it said
            self._writer.drop()

    def _summary(self, repeated: Repeated) -> Line:
        message = f"{repeated.template} ... repeated {repeated.times:,} times in {repeated.seconds:.3g} s"
        line = Line(time.time(), repeated.level, repeated.logger, message, {"hidden": repeated.hidden})
        if line.level >= logging.WARNING:
            self.recent.add(line, repeated.hidden)
        return line

    def _as_json(self, line: Line) -> bytes:
        return as_json(line, role=self._role, pid=os.getpid())


def levels_of(config: LogsConfig) -> dict[str, int]:
    """The level of each logger that has one of its own: libraries', ours, and those that were set."""
    numbers = logging.getLevelNamesMapping()
    level = numbers[config.level.upper()]
    levels = {name: max(level, least) for name, least in LIBRARIES.items()} | {OURS: level}
    return levels | {name: numbers[chosen.upper()] for name, chosen in config.levels.items()}


def configure(config: LogsConfig, *, stream: TextIO | None = None, path: Path | None = None, role: str = "main") -> Logging:
    """Send every record of the process to ``path`` (appended to), else to ``stream``, else to standard error.

    Once per process, as the first thing a program does; again, it replaces the one before. ``role``: who of a run's processes
    this is. Raises ``UsageError`` where ``path`` cannot be opened.
    """
    output = Output(stream or sys.stderr, path)
    if Logging.current is not None:
        Logging.current.close()
    return Logging(config, output, role).open()


def adopt(*names: str) -> None:
    """Take over loggers of libraries which on import gave them handlers of their own (``"ray"``). Nothing before ``configure``."""
    if Logging.current is not None:
        Logging.current.adopt(*names)


def _after_fork() -> None:
    if Logging.current is not None:
        Logging.current.reset()


os.register_at_fork(after_in_child=_after_fork)
