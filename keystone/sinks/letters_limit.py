"""How many bytes of dead letters are kept (``dead_letters.bytes_max``): a flood of them fills no disk. Beyond it they are counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from keystone.events import DeadLetter
from keystone.logs import get
from keystone.sinks.letters_read import NOT_KEPT

LINE_BYTES: Final = 160  # of a letter's line beside its bytes, at most: names, numbers, quotes
WARN_EVERY_S: Final = 60.0

log = get(__name__)


class LettersLimit:
    """Of one session actor, all its partitions together. One thread calls it.

    Where letters of a partition begin to be left out, a line of reason ``not_kept`` and length 0 has the place of the first: who reads them
    again knows that those behind it, up to the next one kept, were counted and not lost. Once it is reached nothing is kept until a partition is
    given away, so that letters are not kept here and there.
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

    def own(self, partition: int, bytes_there: int) -> None:
        """``bytes_there``: that earlier owners wrote."""
        self.disown(partition)
        self._used[partition] = bytes_there
        self._total += bytes_there

    def disown(self, partition: int) -> None:
        """Its letters count for somebody else."""
        gone = self._used.pop(partition, 0)
        self._total -= gone
        self._is_full = self._is_full and not gone
        self._marked.discard(partition)

    def kept(self, partition: int, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
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
        first = letters[count]
        return [*letters[:count], DeadLetter(partition, first.offset, first.line, NOT_KEPT, 0, b"")]

    def _fitting(self, partition: int, letters: Sequence[DeadLetter]) -> int:
        """How many of them, from the first on, there is room for; it is theirs then."""
        used = count = 0
        for letter in letters:
            size = len(letter.raw) * 4 // 3 + LINE_BYTES
            if self._total + used + size > self._bytes_max:
                self._is_full = True
                break
            used, count = used + size, count + 1
        self._total += used
        self._used[partition] = self._used.get(partition, 0) + used
        return count

    def _count(self, letters: Sequence[DeadLetter]) -> None:
        reasons = Counter(letter.reason for letter in letters)
        self.not_kept += reasons
        self._untold += reasons
        now_s = time.monotonic()
        if now_s - self._told_s >= WARN_EVERY_S:
            self._told_s = now_s
            log.warning(
                "dead letters are counted and not kept any more: dead_letters.bytes_max is reached", bytes_max=self._bytes_max, by_reason=dict(self._untold)
            )
            self._untold.clear()
