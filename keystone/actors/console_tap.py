"""Lines for the terminal of a run, from processes that have none: kept until whoever watches the run fetches them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

LINES_MAX: Final = 10_000  # that nobody fetched: then the oldest go; a terminal shows fewer in a second
MISSED: Final = b'{"missed":%d}'


class ConsoleTap:
    """What a ``file_rows.ConsoleRows`` writes to. Any thread writes or drains."""

    def __init__(self, lines_max: int = LINES_MAX) -> None:
        self._lines: deque[bytes] = deque()
        self._lines_max = lines_max
        self._missed = 0
        self._lock = threading.Lock()

    def write(self, text: bytes) -> int:
        with self._lock:
            self._lines.extend(text.splitlines())
            while len(self._lines) > self._lines_max:
                self._lines.popleft()
                self._missed += 1
        return len(text)

    def flush(self) -> None:
        """Nothing is held elsewhere."""

    def drain(self) -> list[bytes]:
        """Lines since the last call, without their ends; how many were missed, where some were."""
        with self._lock:
            found = list(self._lines)
            if self._missed:
                found.insert(0, MISSED % self._missed)
            self._lines.clear()
            self._missed = 0
        return found
