"""Ctrl-C and SIGTERM: the first asks for a clean end with a report, a second, a moment later, ends at once."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

SAME_S = 1.0  # whoever sends a signal to a process and then to its group means one
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """``with StopSignal() as stop``: ``stop.is_asked()`` after the first signal; another, over SAME_S later, raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self._asked = False
        self._asked_s = 0.0  # monotonic
        self._before: dict[int, Any] = {}

    def is_asked(self) -> bool:
        return self._asked

    def install(self) -> None:
        """Take the signals over: also from libraries that took them meanwhile (Ray takes SIGTERM when it starts)."""
        for number in SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self._asked and time.monotonic() - self._asked_s > SAME_S:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked, self._asked_s = True, time.monotonic()
