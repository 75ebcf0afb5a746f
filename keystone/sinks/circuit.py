"""When to try again: full jitter, and a circuit that keeps a receiver in trouble from being asked by everybody at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries: uniform from 0 to a bound that doubles (full jitter: callers that failed together do not return together)."""

    first_ms: int
    max_ms: int
    draw: Callable[[], float] = random.random

    def wait_ms(self, failures: int) -> int:
        """Before the next try after ``failures`` >= 1 in a row."""
        bound_ms = min(self.max_ms, self.first_ms << min(failures - 1, 30))
        return int(self.draw() * bound_ms)


class State(Enum):
    CLOSED = "closed"  # works, as far as we know
    OPEN = "open"  # nothing is sent
    HALF_OPEN = "half_open"  # one try is under way


class Circuit:
    """Opens after some failures in a row; after a wait lets one try through, which closes it or opens it for longer."""

    def __init__(self, opens_after: int, backoff: Backoff) -> None:
        self.state = State.CLOSED
        self.opened = 0  # times
        self.failures = 0  # in a row
        self.until_ms = 0  # while open: when the next try may be
        self._opens_after = opens_after
        self._backoff = backoff

    def may_try(self, now_ms: int) -> bool:
        return self.state is State.CLOSED or (self.state is State.OPEN and now_ms >= self.until_ms)

    def start(self) -> bool:
        """A try begins, where ``may_try``; True where it is the one that decides."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN
            return True
        return False

    def succeed(self) -> None:
        self.state, self.failures = State.CLOSED, 0

    def fail(self, now_ms: int, *, wait_ms: int = 0) -> None:
        """``wait_ms``: the receiver asked for that much, at least; then it opens at once."""
        self.failures += 1
        if self.state is State.CLOSED and self.failures < self._opens_after and wait_ms == 0:
            return
        if self.state is State.CLOSED:
            self.opened += 1
        self.state = State.OPEN
        self.until_ms = now_ms + max(wait_ms, self._backoff.wait_ms(self.failures))
