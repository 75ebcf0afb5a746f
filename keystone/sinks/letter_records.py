"""Dead letters of a batch as records of Kafka, written by a kernel: of a flood there are as many as of good lines.

A record's value is the line itself (its first 64 KiB); what is known about it is in the headers, as decimal text, and of which ``run`` it is, where that
has a name: logs may share a topic.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from keystone.events import I64, U8
from keystone.kernels.letters import write_records
from keystone.letter_batch import LetterBatch
from keystone.log.kafka.batches import headers_text

HEADERS: Final = ("reason", "partition", "offset", "line", "length")
OVERHEAD_BYTES: Final = 160  # of a letter's record beside its bytes and its reason, at most: 19 digits a number, names, varints


class LetterRecords:
    """What ``Producer.send_records`` takes. ``too_large``: how many are too large for ``record_bytes_max``; ``letters``: the others."""

    def __init__(self, letters: LetterBatch, record_bytes_max: int, *, run: str = "") -> None:
        self._more: U8 = np.frombuffer(headers_text((("run", run.encode()),)) if run else b"\0", np.uint8)[1:]  # behind the count
        self._headers = len(HEADERS) + bool(run)
        self._overhead = OVERHEAD_BYTES + self._more.size + max(map(len, letters.names), default=0)
        fits = letters.kept_bytes + self._overhead <= record_bytes_max
        self.too_large = int(fits.size - fits.sum())
        self.letters = letters if not self.too_large else letters.picked(np.flatnonzero(fits))
        words = [name.encode() for name in (*HEADERS, *letters.names)]
        self._words, self._ends = np.frombuffer(b"".join(words), np.uint8), np.cumsum([len(word) for word in words], dtype=np.int64)
        self._columns: I64 = np.ascontiguousarray(np.maximum(self.letters.columns, 0))
        self._next = 0

    @property
    def left(self) -> int:
        """Records not taken yet."""
        return len(self.letters) - self._next

    @property
    def bytes_least(self) -> int:
        """Room that the next one needs, at most."""
        return int(self.letters.kept_bytes[self._next]) + self._overhead

    def take(self, number: int, bytes_max: int, records_max: int) -> tuple[memoryview, int]:
        """Records numbered from ``number`` on, no more bytes and no more of them than that; how many."""
        out: U8 = np.empty(bytes_max, np.uint8)
        result = np.zeros(2, np.int64)
        columns = self._columns[:, : self._next + records_max]
        write_records(columns, self.letters.text, self._words, self._ends, self._more, self._headers, self._next, number, out, result)
        count, self._next = int(result[0]) - self._next, int(result[0])
        return out[: int(result[1])].data, count
