"""The way out of the log: repeats are counted, lines are queued, one thread writes them.

Nothing here waits but that thread, and it waits for room in the output, never inside a write that a stuck reader could hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from keystone.errors import UsageError
from keystone.logs_lines import Line

GATHER_S: Final = 0.02  # lines of that long are written together: at most 50 wake-ups a second, and nobody reads faster
POLL_S: Final = 0.1  # how often a thread whose reader is stuck looks whether it should give up
TEMPLATES_MAX: Final = 1_024  # messages whose repeats are counted; beyond, the oldest window ends early
TEMPLATE_CHARS_MAX: Final = 300  # that tell messages apart: 1,024 x (300 + 200) B = 0.5 MB at most


class Repeated(NamedTuple):
    """A window's end: of ``times`` records, ``hidden`` were not shown."""

    logger: str
    level: int
    template: str
    times: int
    hidden: int
    seconds: float


@dataclass(slots=True)
class _Window:
    start_s: float
    count: int = 1


class Repeats:
    """Lets a (logger, level, message) through ``repeats_max`` times in a window, and counts the others. Time comes as an argument."""

    def __init__(self, repeats_max: int, window_ms: int, templates_max: int = TEMPLATES_MAX) -> None:
        self._repeats_max = repeats_max
        self._window_s = window_ms / 1_000
        self._templates_max = templates_max
        self.reset()

    def reset(self) -> None:
        """Forget everything: after a fork, the repeats are the parent's to tell."""
        self._lock = threading.RLock()  # a signal handler may log while this thread does
        self._windows: dict[tuple[str, int, str], _Window] = {}  # by their start: a window that begins goes to the end
        self._over: deque[Repeated] = deque(maxlen=self._templates_max)  # fills only while the output is stuck; then the oldest is forgotten

    def admits(self, logger: str, level: int, template: str, now_s: float) -> bool:
        """False where it was shown often enough."""
        key = (logger, level, template if len(template) <= TEMPLATE_CHARS_MAX else template[:TEMPLATE_CHARS_MAX])
        with self._lock:
            window = self._windows.get(key)
            if window is not None and now_s - window.start_s < self._window_s:
                window.count += 1
                return window.count <= self._repeats_max
            if window is not None:
                self._end(key, now_s)
            elif len(self._windows) >= self._templates_max:
                self._end(next(iter(self._windows)), now_s)
            self._windows[key] = _Window(now_s)
            return True

    def ended(self, now_s: float, *, all_of_them: bool = False) -> list[Repeated]:
        """The windows that are over and hid something, each once."""
        with self._lock:
            while self._windows:
                key, window = next(iter(self._windows.items()))
                if now_s - window.start_s < self._window_s and not all_of_them:
                    break
                self._end(key, now_s)
            over = list(self._over)
            self._over.clear()
        return over

    def next_end_s(self) -> float | None:
        """When the oldest window ends."""
        with self._lock:
            return next((window.start_s + self._window_s for window in self._windows.values()), None)

    def _end(self, key: tuple[str, int, str], now_s: float) -> None:
        window = self._windows.pop(key, None)  # None: a signal handler logged, and ended it, meanwhile
        if window is not None and (hidden := max(0, window.count - self._repeats_max)):
            self._over.append(Repeated(*key, window.count, hidden, min(now_s - window.start_s, self._window_s)))


class Output:
    """Where lines go: a file of its own, a descriptor, or a stream without one (a test's).

    Descriptors are written directly, in pieces of whole lines that pipes take at once and unmixed, and only while they have
    room: a stuck reader keeps neither a lock of ``sys.stderr`` nor the writing thread.
    """

    def __init__(self, stream: TextIO | None, path: Path | None) -> None:
        """``path`` is appended to; ``UsageError`` where it cannot be opened. Without one, lines go to ``stream``, which its owner may close."""
        self._stream = stream
        self._descriptor = _descriptor_of(stream) if path is None else _opened(path)
        self.is_terminal = self._descriptor is not None and os.isatty(self._descriptor)
        self._is_torn = False  # the last line did not get out whole
        self._room = select.poll()
        if self._descriptor is not None:
            self._room.register(self._descriptor, select.POLLOUT)

    def write(self, lines: list[bytes], must_give_up: Callable[[], bool]) -> int:
        """Write them, waiting for room until ``must_give_up``; returns how many could not be written."""
        if self._descriptor is None:
            return self._write_stream(lines)
        return sum(count for count, piece in _pieces(lines) if must_give_up() or not self._write_piece(self._descriptor, piece, must_give_up))

    def _write_stream(self, lines: list[bytes]) -> int:
        if self._stream is not None:
            try:
                self._stream.write(b"".join(lines).decode())
                self._stream.flush()
            except (OSError, ValueError):  # refused, or closed
                return len(lines)
        return 0

    def _write_piece(self, descriptor: int, piece: bytes, must_give_up: Callable[[], bool]) -> bool:
        rest = memoryview(b"\n" + piece if self._is_torn else piece)
        while rest:
            try:
                if self._room.poll(POLL_S * 1_000):
                    rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
                    self._is_torn = bool(rest)
                elif must_give_up():
                    return False
            except BlockingIOError:  # someone made it non-blocking, and it has less room than poll promised
                if must_give_up():
                    return False
                time.sleep(POLL_S)
            except OSError:
                return False
        return True

    def close(self) -> None:
        """The stream stays open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._stream = None


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise UsageError(f"{path} cannot be written for the log: {error.strerror}; choose another file") from None


def _descriptor_of(stream: TextIO | None) -> int | None:
    """Our own, for whatever the stream writes to; None where it has none."""
    try:
        return None if stream is None else os.dup(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _pieces(lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """(lines, their bytes), together at most PIPE_BUF; a longer line alone."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and size + len(line) > select.PIPE_BUF:
            yield len(held), b"".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield len(held), b"".join(held)


class Writer:
    """A bounded queue of captured lines, and the thread that renders and writes them. The thread starts with the first line.

    ``repeats``: whose summaries are written when their windows end, each given to ``tell`` too.
    """

    def __init__(self, output: Output, render: Callable[[Line], bytes], records_max: int, repeats: Repeats, tell: Callable[[Repeated], Line]) -> None:
        self.dropped = 0
        self._output = output
        self._render = render
        self._records_max = records_max
        self._repeats = repeats
        self._tell = tell
        self._told = 0  # of the dropped
        self._give_up_at_s = float("inf")
        self.reset()

    def reset(self) -> None:
        """As new: after a fork, queue and thread are the parent's."""
        self._queue: queue.SimpleQueue[Line | threading.Event | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, line: Line) -> None:
        """Queue it, or count it as dropped. Never waits. Threads that log at once may each go one record beyond the limit."""
        if self._queue.qsize() >= self._records_max:
            self.drop()
            return
        self._queue.put(line)
        if self._thread is None:
            self._start()

    def drop(self, count: int = 1) -> None:
        with self._lock:
            self.dropped += count

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="logs", daemon=True)
                self._thread.start()

    def flush(self, wait_s: float) -> bool:
        """Wait until what is queued is written; False where that took too long."""
        if self._thread is None:
            return True
        written = threading.Event()
        self._queue.put(written)
        self._hurry.set()
        return written.wait(wait_s)

    def close(self, wait_s: float) -> bool:
        """Write what is queued and end, within about ``wait_s``; False where the thread is stuck and lives on."""
        if self._thread is None:
            return True
        self._give_up_at_s = time.monotonic() + wait_s
        self._queue.put(None)
        self._hurry.set()
        self._thread.join(wait_s + 2 * POLL_S)
        return not self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------------------------------
    def _live(self) -> None:
        is_over = False
        while not is_over:
            items = self._gathered()
            is_over = None in items
            lines = [item for item in items if isinstance(item, Line)]
            lines += [self._tell(repeated) for repeated in self._repeats.ended(time.monotonic(), all_of_them=is_over)]
            self._write(lines)
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _gathered(self) -> list[Line | threading.Event | None]:
        """What is queued, once there is something; nothing when a window of repeats ends."""
        end_s = self._repeats.next_end_s()
        items: list[Line | threading.Event | None] = []
        with contextlib.suppress(queue.Empty):
            items.append(self._queue.get(timeout=None if end_s is None else max(0.001, end_s - time.monotonic())))
            self._hurry.wait(GATHER_S)
            self._hurry.clear()
            while len(items) < self._records_max:
                items.append(self._queue.get_nowait())
        return items

    def _write(self, lines: list[Line]) -> None:
        """Write them; then, where that went well, how many were dropped since that was told."""
        lost = self._output.write([self._rendered(line) for line in lines], self._must_give_up)
        self.drop(lost)
        dropped = self.dropped
        if dropped > self._told and not lost:
            message = "log records dropped: whatever takes the log was too slow, or refused it"
            line = Line(time.time(), logging.WARNING, __name__, message, {"dropped": dropped - self._told, "dropped_in_all": dropped})
            if not self._output.write([self._rendered(line)], self._must_give_up):
                self._told = dropped

    def _must_give_up(self) -> bool:
        return time.monotonic() >= self._give_up_at_s

    def _rendered(self, line: Line) -> bytes:
        try:
            return self._render(line)
        except Exception:  # noqa: BLE001 - a line that cannot be shown must not end the thread
            self.drop()
            return b""
