"""How many bytes of dead letters are kept (``dead_letters.bytes_max``): a flood of them fills no disk. Beyond it they are counted."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

import numpy as np

from keystone.events import DeadLetter
from keystone.letter_batch import LetterBatch
from keystone.logs import get
from keystone.sinks.ndjson import NOT_KEPT

LINE_BYTES: Final = 160  # of a letter's line beside its bytes, at most: names, numbers, quotes
WARN_EVERY_S: Final = 60.0

log = get(__name__)


class LettersLimit:
    """Of one session actor, all its partitions together. One thread calls it.

    Where letters of a partition begin to be left out, a line of reason ``not_kept`` and length 0 has the place of the first: who reads them
    again knows that those behind it, up to the next one kept, were counted and not lost. Once it is reached nothing is kept until a partition is
    given away, so that letters are not kept here and there. There is room for that line before the limit, and a later owner says none again.
    """

    def __init__(self, bytes_max: int) -> None:
        self.not_kept: Counter[str] = Counter()  # by reason
        self._bytes_max = bytes_max
        self._used: dict[int, int] = {}
        self._total = 0
        self._is_full = False
        self._marked: set[int] = set()
        self._untold: Counter[str] = Counter()
        self._told_s = -WARN_EVERY_S

    def own(self, partition: int, bytes_there: int, *, is_marked: bool = False) -> None:
        """``bytes_there``: that earlier owners wrote; ``is_marked``: the last of it is a marker, so what is not kept now is behind it."""
        self.disown(partition)
        self._used[partition] = bytes_there
        self._total += bytes_there
        if is_marked:
            self._marked.add(partition)

    def disown(self, partition: int) -> None:
        """Its letters count for somebody else."""
        gone = self._used.pop(partition, 0)
        self._total -= gone
        self._is_full = self._is_full and not gone
        self._marked.discard(partition)

    def kept(self, partition: int, letters: LetterBatch) -> LetterBatch:
        """Those to be written, and the marker where others begin."""
        if not letters:
            return letters
        count = 0 if self._is_full else self._fitting(partition, letters)
        if count:
            self._marked.discard(partition)
        if count == len(letters):
            return letters
        self._count(letters[count:])
        if partition in self._marked:
            return letters[:count]
        self._marked.add(partition)
        self._take(partition, LINE_BYTES)
        marker = DeadLetter(partition, int(letters.offsets[count]), int(letters.lines[count]), NOT_KEPT, 0, b"")
        return LetterBatch.joined([letters[:count], LetterBatch.of([marker])])

    def _fitting(self, partition: int, letters: LetterBatch) -> int:
        """How many of them, from the first on, there is room for; it is theirs then."""
        reached = np.cumsum(letters.kept_bytes * 4 // 3 + LINE_BYTES)
        room = self._bytes_max - self._total - LINE_BYTES * len(self._used.keys() - self._marked)  # each may have to be marked yet
        count = int(np.searchsorted(reached, room, side="right"))
        self._is_full = count < len(letters)
        self._take(partition, int(reached[count - 1]) if count else 0)
        return count

    def _take(self, partition: int, size: int) -> None:
        self._total += size
        self._used[partition] = self._used.get(partition, 0) + size

    def _count(self, letters: LetterBatch) -> None:
        reasons = letters.by_reason()
        self.not_kept.update(reasons)
        self._untold.update(reasons)
        now_s = time.monotonic()
        if now_s - self._told_s >= WARN_EVERY_S:
            self._told_s = now_s
            log.warning(
                "dead letters are counted and not kept any more: dead_letters.bytes_max is reached", bytes_max=self._bytes_max, by_reason=dict(self._untold)
            )
            self._untold.clear()
