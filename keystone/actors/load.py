"""How much comes into a partition: measured by its owner, told with its status, so that the supervisor can spread partitions by it.

The measure is events appended a second, whether they were read or not. What an owner manages to read would tell least of those that
have too much to do, and CPU time is nearly the same for an event of any partition. What is behind already does not
count: it would make a partition heavier the longer its owner was away, and move it for what passes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LOOK_EVERY_S: Final = 1.0
LOOKS_OF_WINDOW: Final = 4  # at least: windows of tests are short


class Look(NamedTuple):
    """What was so at one moment: the offset behind the log's last record, that behind our last one, and the events up to there."""

    now_s: float
    end_offset: int
    position: int
    received: int


@dataclass(slots=True)
class LoadMeter:
    """``events_per_s``: the mean over a window, three digits of it; None until one has passed since the partition was taken over.

    A look costs a microsecond or two, and is due once a second.
    """

    events_per_s: int | None = None
    due_s: float = 0.0
    _looks: deque[Look] = field(default_factory=deque)  # of one window: 31 with the defaults
    _events_per_record: float = 1.0  # as long as none was read

    def look(self, look: Look, window_s: float) -> None:
        looks = self._looks
        self.due_s = look.now_s + min(LOOK_EVERY_S, window_s / LOOKS_OF_WINDOW)
        if looks and (look.end_offset < looks[-1].end_offset or look.position < looks[-1].position):
            looks.clear()  # the log was made anew, or cut back
        looks.append(look)
        while len(looks) > 1 and look.now_s - looks[1].now_s >= window_s:
            looks.popleft()
        first, since_s = looks[0], look.now_s - looks[0].now_s
        if since_s < window_s:
            return
        if look.position > first.position:
            self._events_per_record = (look.received - first.received) / (look.position - first.position)
        self.events_per_s = _rounded((look.end_offset - first.end_offset) * self._events_per_record / since_s)

    def begin_anew(self, now_s: float) -> None:
        """Nobody can say for now what is appended: what was measured before stands, until another window has passed."""
        self._looks.clear()
        self.due_s = now_s + LOOK_EVERY_S


def _rounded(number: float) -> int:
    return int(float(f"{number:.3g}"))
