"""Coroutines that any function can run in: it may pause wherever it is, however deep, and is resumed, or killed, there.

Python has none that pause inside calls of code that knows nothing of it; greenlets do. Exactly one runs at any time, and who is
next is decided by whoever resumes.
"""

from __future__ import annotations

from collections.abc import Callable

from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """Raised where a strand is paused, when it is killed. Like a signal that cannot be caught: nothing may handle it."""


class Strand:
    """``resume`` runs it until it pauses or is over. ``wake_ms``: for the scheduler."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.name = name
        self.wake_ms = 0
        self.is_over = False
        self._run = run
        self._greenlet: greenlet | None = None
        self._is_killed = False

    def resume(self) -> None:
        """Raises what the function raised."""
        if self._greenlet is None:
            if self._is_killed:
                self.is_over = True
                return
            self._greenlet = greenlet(self._live)
        self._greenlet.parent = getcurrent()  # where it goes when it pauses, or is over
        self._greenlet.switch()

    def pause(self) -> None:
        """From inside. Returns when it is resumed."""
        assert self._greenlet is not None
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch()
        if self._is_killed:
            raise Killed

    def kill(self) -> None:
        """From outside, while it is paused: it ends where it stands."""
        if not self.is_over:
            self._is_killed = True
            self.resume()

    def _live(self) -> None:
        try:
            self._run()
        except Killed:
            pass
        finally:
            self.is_over = True
            self._greenlet = None
