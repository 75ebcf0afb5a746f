"""What a writer does before its first append: check all that is retained, and find where the log ends.

A crash can leave one unfinished record at the end, which nobody was told of: it is cut away and counted. Damage before
a later whole record is another matter, and so is the loss of records that a reader has consumed (their offsets name
them for ever and must not be given out again): both are ``LogCorrupt``.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from keystone.errors import LogCorrupt
from keystone.events import I64
from keystone.kernels import log as kernels
from keystone.log.segment import SegmentHead, WritableSegment, segment_numbers, segment_path


def recover(run: int, partition: int, folder: Path, segment_bytes: int, row: I64) -> deque[WritableSegment]:
    """Open the partition's segments, oldest first, and set its ``row`` right. Empty where nothing was ever written."""
    first = int(row[kernels.FIRST_SEGMENT])
    numbers = segment_numbers(folder)
    for number in numbers:
        if number < first:  # dropped, by a writer that died before it deleted the file
            segment_path(folder, number).unlink()
    numbers = [number for number in numbers if number >= first]
    if int(row[kernels.COMMITTED]) == 0:  # the first writer died before it said that the first segment is there
        for number in numbers:
            segment_path(folder, number).unlink()
        return deque()
    return _Recovery(run, partition, folder, segment_bytes, row).segments_of(first, numbers)


class _Recovery:
    def __init__(self, run: int, partition: int, folder: Path, segment_bytes: int, row: I64) -> None:
        self._run = run
        self._partition = partition
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._row = row
        self._committed_number = int(row[kernels.COMMITTED]) // segment_bytes
        self._state: I64 = np.zeros(kernels.STATE_WORDS, np.int64)
        self._last_ms = 0
        self._segments: deque[WritableSegment] = deque()

    def segments_of(self, first: int, numbers: list[int]) -> deque[WritableSegment]:
        try:
            number = first
            while self._check(number, is_first=number == first):
                number += 1
            self._cut(number, numbers)
        except BaseException:
            for segment in self._segments:
                segment.close()
            raise
        return self._segments

    def _check(self, number: int, *, is_first: bool) -> bool:
        """Check segment ``number``; whether the log goes on in the next."""
        path = segment_path(self._folder, number)
        if not path.exists():
            raise LogCorrupt(f"{path} is gone, and the log reaches to segment {self._committed_number}")
        segment = WritableSegment(self._folder, number, self._segment_bytes, new=False)
        self._segments.append(segment)
        head = SegmentHead.read(segment.array)
        state = self._state
        if head is None or (head.run, head.partition, head.number) != (self._run, self._partition, number):
            raise LogCorrupt(f"{path}: the head of the segment, at byte 0, is damaged, or another log's")
        if is_first:
            state[kernels.OFFSET], state[kernels.EVENTS], self._last_ms = head.first_offset, head.events_before, head.last_append_ms
            self._row[kernels.START_OFFSET] = head.first_offset
        elif head.first_offset != state[kernels.OFFSET]:
            raise LogCorrupt(f"{path}: begins at offset {head.first_offset}, and the segment before it ends at {state[kernels.OFFSET]}")
        segment.first_offset = head.first_offset
        state[kernels.AT] = kernels.SEGMENT_HEAD
        self._last_ms = int(kernels.recover(segment.read_only(), state, segment.room, self._last_ms))
        return bool(state[kernels.STATUS] == kernels.SEGMENT_END)

    def _cut(self, number: int, numbers: list[int]) -> None:
        """The log ends in segment ``number`` at the state's place: see that nothing whole is lost by that, then say so."""
        row, state, segment = self._row, self._state, self._segments[-1]
        at, offset = int(state[kernels.AT]), int(state[kernels.OFFSET])
        damage = LogCorrupt(f"{segment.path}: the record of offset {offset} at byte {at} is damaged")
        if kernels.find_later(segment.read_only(), at, segment.room, offset) >= 0 or number < self._committed_number:
            raise damage
        lost = int(row[kernels.END_OFFSET]) - offset
        if lost > 0 and int(row[kernels.CONSUMED_OFFSET]) > offset:
            raise damage
        for unused in numbers:
            if unused > number:  # made ready by a writer that died before it went there
                segment_path(self._folder, unused).unlink()
        row[kernels.TORN_RECORDS] += max(lost, int(state[kernels.STATUS] == kernels.BROKEN))
        kernels.clear_words(segment.array, at, 1)
        row[kernels.EVENTS_APPENDED], row[kernels.LAST_APPEND_MS] = state[kernels.EVENTS], self._last_ms
        kernels.write_word(row, kernels.END_OFFSET, offset)
        kernels.write_word(row, kernels.COMMITTED, number * self._segment_bytes + at)
