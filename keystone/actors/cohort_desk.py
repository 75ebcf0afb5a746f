"""What an owner has counted of cohorts lately, for whoever adds up all partitions.

Windows that log time has passed lie here until they were fetched, and ``RECENT_MS`` of log time longer: who adds up and is begun anew
fetches them again, and the rows of 10 s and of a minute need all of theirs. They are part of the partition's checkpoint, so the next
owner tells them again, too: the sums of a window are the same whoever dies. Saying anything twice is harmless (``qoe_merge``).

One thread adds; any thread fetches.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keystone.errors import CheckpointDamaged
from keystone.logs import get
from keystone.qoe import WINDOWS_MS, CohortPartial
from keystone.qoe_bytes import from_bytes, to_bytes

RECENT_MS: Final = 60_000  # before the minute that log time is in: partitions that far behind each other still come to the same rows
UNTOLD_BYTES_MAX: Final = 64 << 20  # that nobody fetched, of all partitions: then the oldest go; ~5 h of 110 cohorts a second
BYTES, ENDS = "recent_cohorts", "recent_cohort_ends"  # in a checkpoint: all of them in a row; (until_ms, where it ends) of each

Arrays = dict[str, npt.NDArray[Any]]

log = get(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    until_ms: int  # behind its last window
    content: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """``contents``: as ``qoe_bytes`` reads them. ``passed_ms``: how far log time has passed, by partition: all before it has been told.

    ``cursor``: what to say next time.
    """

    cursor: tuple[str, int]
    passed_ms: dict[int, int]
    contents: list[bytes]


@dataclass(slots=True)
class _Partition:
    kept: deque[_Kept] = field(default_factory=deque)
    passed_ms: int = 0


class CohortDesk:
    """Of one process. ``dropped``: partials that went untold for want of room."""

    def __init__(self, untold_bytes_max: int = UNTOLD_BYTES_MAX) -> None:
        self.dropped = 0
        self._id = uuid.uuid4().hex
        self._untold_bytes_max = untold_bytes_max
        self._partitions: dict[int, _Partition] = {}
        self._numbers = 0  # of everything ever kept
        self._fetched = 0  # up to this number somebody has it
        self._bytes = 0
        self._lock = threading.Lock()

    # --- for the owner --------------------------------------------------------------------------------------------------
    def own(self, partition: int, arrays: Arrays) -> None:
        """Go on where a checkpoint's arrays (none: at the beginning) say. Raises ``CheckpointDamaged``."""
        with self._lock:
            self._drop(partition)
            mine = self._partitions[partition] = _Partition()
            for until_ms, content in _contents(arrays):
                self._keep(mine, until_ms, content)

    def disown(self, partition: int) -> None:
        """What was not fetched is told by the next owner."""
        with self._lock:
            self._drop(partition)

    def add(self, partition: int, partials: Iterable[CohortPartial], passed_ms: int) -> None:
        """What a step gave, and how far it let log time pass."""
        told = [(int(partial.window_start_ms.max()) + WINDOWS_MS[0], to_bytes(partial)) for partial in partials if partial.rows]
        with self._lock:
            mine = self._partitions[partition]
            for until_ms, content in told:
                self._keep(mine, until_ms, content)
            mine.passed_ms = max(mine.passed_ms, passed_ms)
            if told:
                self._forget(mine)

    def snapshot(self, partition: int) -> Arrays:
        """What is kept of a partition, for its checkpoint."""
        with self._lock:
            kept = list(self._partitions[partition].kept)
        ends = np.cumsum([len(one.content) for one in kept], dtype=np.int64)
        untils = np.array([one.until_ms for one in kept], np.int64)
        return {BYTES: np.frombuffer(b"".join(one.content for one in kept), np.uint8), ENDS: np.stack((untils, ends), axis=1).reshape(-1)}

    # --- for whoever adds up --------------------------------------------------------------------------------------------
    def fetch(self, cursor: tuple[str, int] | None) -> Fetched:
        """What came since ``cursor``; everything where that is another's, or none. Takes for received what is before the cursor."""
        with self._lock:
            after = cursor[1] if cursor is not None and cursor[0] == self._id else 0
            self._fetched = max(self._fetched, after)
            passed = {partition: mine.passed_ms for partition, mine in self._partitions.items()}
            kept = sorted((one for mine in self._partitions.values() for one in mine.kept if one.number > after), key=lambda one: one.number)
            return Fetched((self._id, self._numbers), passed, [one.content for one in kept])

    # --- under the lock -------------------------------------------------------------------------------------------------
    def _keep(self, mine: _Partition, until_ms: int, content: bytes) -> None:
        self._numbers += 1
        self._bytes += len(content)
        mine.kept.append(_Kept(self._numbers, until_ms, content))

    def _forget(self, mine: _Partition) -> None:
        minute_ms = mine.passed_ms // WINDOWS_MS[-1] * WINDOWS_MS[-1]
        while mine.kept and mine.kept[0].until_ms <= minute_ms - RECENT_MS and mine.kept[0].number <= self._fetched:
            self._bytes -= len(mine.kept.popleft().content)
        while self._bytes > self._untold_bytes_max:
            fullest = max(self._partitions.values(), key=lambda one: len(one.kept))
            self._bytes -= len(fullest.kept.popleft().content)
            self.dropped += 1
            if self.dropped == 1:
                log.warning("nobody fetches what is counted of cohorts: the oldest windows are dropped", bytes_max=self._untold_bytes_max)

    def _drop(self, partition: int) -> None:
        mine = self._partitions.pop(partition, None)
        if mine is not None:
            self._bytes -= sum(len(one.content) for one in mine.kept)


def partials_of(fetched: Fetched) -> Iterator[CohortPartial]:
    """What was fetched, readable."""
    return (from_bytes(content) for content in fetched.contents)


def _contents(arrays: Arrays) -> Iterator[tuple[int, bytes]]:
    """Of a checkpoint; one of an earlier version has none."""
    if ENDS not in arrays:
        return
    content, ends = arrays.get(BYTES, np.zeros(0, np.uint8)).tobytes(), arrays[ENDS].reshape(-1, 2).tolist()
    start = 0
    for until_ms, end in ends:
        if not start <= end <= len(content):
            raise CheckpointDamaged("its cohorts end where they should not")
        from_bytes(content[start:end])  # now, rather than with whoever adds up
        yield until_ms, content[start:end]
        start = end
