"""One partition of the embedded log: its writer and its readers."""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from keystone.clock import Clock
from keystone.errors import LogClosed, LogCorrupt, LogFull, LogInUse, OffsetOutOfRange, RecordTooLarge
from keystone.events import I64, U8, Records
from keystone.kernels import log as kernels
from keystone.log.base import Appended, Gap, Sent
from keystone.log.recovery import recover
from keystone.log.segment import MappedSegment, SegmentCache, SegmentHead, WritableSegment, remove_spares, segment_path

RECORDS_MAX: Final = 65_536  # of one poll; 5 columns x 8 B each = 2.6 MB a reader
_MARKS_MAX: Final = 65_536  # polls between two commits whose event counts are remembered
_EVENTS_MAX: Final = (1 << 31) - 1
_POLL_STEP_S: Final = (0.0005, 0.001, 0.002)  # an idle reader wakes 500 times a second: 0.5% of a core
_ROOM_STEP_S: Final = 0.001
#: An append that is under way for longer (usually: less than 1 us) died with its writer: log time goes on without it. Only a
#: writer that was stopped right there for longer, and lives, could still append a record from the past.
APPEND_HELD_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What a log is made of; the same for every process, in ``log.json``."""

    directory: Path
    run: int
    partitions: int
    segment_bytes: int
    retention_bytes: int
    record_bytes_max: int

    @property
    def segments(self) -> int:
        """Segments that a partition may hold."""
        return self.retention_bytes // self.segment_bytes

    def folder(self, partition: int) -> Path:
        return self.directory / f"p{partition:04d}"


def writer_pid(folder: Path) -> int:
    """The process that writes to the partition in ``folder``, or 0."""
    try:
        file = os.open(folder / "writer", os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(file, 32, 0) or b"0")
    finally:
        os.close(file)
    return 0


def _lock_writer(folder: Path, partition: int) -> int:
    file = os.open(folder / "writer", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(file, 32, 0).decode() or "unknown"
        os.close(file)
        raise LogInUse(f"{folder.parent}: partition {partition} is being written by process {pid}: choose another directory, or stop it") from None
    os.truncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


class EmbeddedWriter:
    """The only writer of one partition. One thread appends; ``close`` may come from another."""

    def __init__(self, shape: Shape, partition: int, row: I64, clock: Clock, append_wait_max_ms: int, *, preallocate: bool) -> None:
        self.partition = partition
        self.sent = Sent()
        self._shape = shape
        self._folder = shape.folder(partition)
        self._row = row
        self._clock = clock
        self._append_wait_max_ms = append_wait_max_ms
        self._closed = False
        self._lock = _lock_writer(self._folder, partition)
        self._segments: deque[WritableSegment] = deque()
        self._spares: list[WritableSegment] = []
        try:
            remove_spares(self._folder)
            self._segments = recover(shape.run, partition, self._folder, shape.segment_bytes, row)
            if not self._segments:
                self._segments.append(self._new_segment(self._head(0)))
                kernels.write_word(row, kernels.COMMITTED, kernels.SEGMENT_HEAD)
            while preallocate and len(self._segments) + len(self._spares) < shape.segments:
                self._spares.append(WritableSegment(self._folder, -1 - len(self._spares), shape.segment_bytes, new=True))
        except BaseException:
            for segment in (*self._segments, *self._spares):
                segment.close()
            os.close(self._lock)
            raise
        kernels.write_word(row, kernels.APPENDING, 0)  # a mark that a dead writer left
        kernels.write_word(row, kernels.WRITER_PID, os.getpid())
        self._next_offset = int(row[kernels.END_OFFSET])
        self._use(self._segments[-1])

    def _use(self, segment: WritableSegment) -> None:
        self._array = segment.array
        self._start = segment.number * self._shape.segment_bytes
        self._room = segment.room

    def append(self, value: bytes | memoryview | U8, *, events: int = 1) -> Appended:
        """See ``LogWriter.append``. One copy of the value, its checksum, and one published word."""
        if self._closed:
            raise LogClosed(f"{self._folder}: the writer was closed")
        source = np.frombuffer(value if type(value) is bytes else memoryview(value).toreadonly(), np.uint8)  # type: ignore[arg-type]
        if source.size > self._shape.record_bytes_max:
            raise RecordTooLarge(f"{self._folder}: a record of {source.size:,} bytes is over record_bytes_max = {self._shape.record_bytes_max:,}")
        if not 0 <= events <= _EVENTS_MAX:
            raise ValueError(f"events = {events} must be from 0 to {_EVENTS_MAX}")
        row = self._row
        append_ms = kernels.append_record(self._array, row, source, self._start, self._room, events, self._clock.now_ms())
        if append_ms < 0:
            self._roll()
            append_ms = kernels.append_record(self._array, row, source, self._start, self._room, events, self._clock.now_ms())
        offset = self._next_offset
        self._next_offset = offset + 1
        self.sent.acknowledged += 1
        self.sent.acknowledged_events += events
        return Appended(offset, append_ms)

    def send(self, value: bytes | memoryview | U8, *, events: int = 1, key: bytes | None = None) -> None:  # noqa: ARG002 - no keys here
        """See ``LogWriter.send``: the outcome is known at once here."""
        self.append(value, events=events)

    def flush(self, *, wait_s: float) -> bool:  # noqa: ARG002 - the contract's signature
        """See ``LogWriter.flush``."""
        return True

    def _head(self, number: int) -> SegmentHead:
        row = self._row
        return SegmentHead(
            self._shape.run, self.partition, number, int(row[kernels.END_OFFSET]), int(row[kernels.EVENTS_APPENDED]), int(row[kernels.LAST_APPEND_MS])
        )

    def _new_segment(self, head: SegmentHead) -> WritableSegment:
        if self._spares:
            spare = self._spares.pop()
            spare.use_again(head)
            return spare
        segment = WritableSegment(self._folder, head.number, self._shape.segment_bytes, new=True)
        segment.begin(head)
        return segment

    def _roll(self) -> None:
        """Go on in the next segment.

        In this order, so that a crash between two steps loses nothing: the next file is whole before the mark that
        sends readers there, and the mark before the committed place moves there.
        """
        current = self._segments[-1]
        at = int(self._row[kernels.COMMITTED]) - self._start
        following = self._next_segment(self._head(current.number + 1))
        kernels.clear_words(current.array, at + 8, 3)
        current.array[at : at + 8].view(np.int64)[0] = kernels.END
        self._segments.append(following)
        self._use(following)
        kernels.write_word(self._row, kernels.COMMITTED, self._start + kernels.SEGMENT_HEAD)

    def _next_segment(self, head: SegmentHead) -> WritableSegment:
        """A fresh file while there is room, else the oldest one again; waits until one of the two is possible."""
        waited_from = time.monotonic()
        while True:
            full = f"{self._shape.retention_bytes:,} bytes are retained"
            if len(self._segments) < self._shape.segments:
                try:
                    return self._new_segment(head)
                except LogFull as error:
                    full = str(error)
            if self._oldest_is_consumed():
                dropped = self._drop_oldest()
                if dropped.use_again(head):
                    return dropped
                dropped.remove()  # a reader still maps it, and keeps its bytes until it lets go
                continue
            waited_ms = int((time.monotonic() - waited_from) * 1000)
            if waited_ms >= self._append_wait_max_ms:
                consumed = kernels.read_word(self._row, kernels.CONSUMED_OFFSET)
                raise LogFull(
                    f"{self._folder}: no room for {self._append_wait_max_ms} ms: {full}, of offsets {self._segments[0].first_offset} to"
                    f" {head.first_offset - 1}, and only those below {consumed} are consumed: its reader is too slow or gone"
                )
            time.sleep(_ROOM_STEP_S)
            self._row[kernels.WAITED_MS] += int((time.monotonic() - waited_from) * 1000) - waited_ms
            if self._closed:
                raise LogClosed(f"{self._folder}: the writer was closed while it waited for room")

    def _oldest_is_consumed(self) -> bool:
        """Never true of the segment in use: it may be the only one."""
        return len(self._segments) > 1 and self._segments[1].first_offset <= kernels.read_word(self._row, kernels.CONSUMED_OFFSET)

    def _drop_oldest(self) -> WritableSegment:
        """Readers are told first; the bytes go, or are used again, only then."""
        dropped = self._segments.popleft()
        kernels.write_word(self._row, kernels.START_OFFSET, self._segments[0].first_offset)
        kernels.write_word(self._row, kernels.FIRST_SEGMENT, self._segments[0].number)
        return dropped

    def close(self) -> None:
        """Write everything to the disk (no cost in memory), and let another writer in."""
        if self._closed:
            return
        self._closed = True
        for segment in self._segments:
            segment.close(durable=True)
        for spare in self._spares:
            spare.remove()
        kernels.write_word(self._row, kernels.WRITER_PID, 0)
        os.close(self._lock)


class EmbeddedReader:
    """One reader's place in one partition. ``Records`` are views into the mapped segment, valid until the next poll or seek."""

    def __init__(self, shape: Shape, partition: int, row: I64, *, verify: bool) -> None:
        self.partition = partition
        self._shape = shape
        self._folder = shape.folder(partition)
        self._row = row
        self._verify = verify
        self._closed = False
        self._cache = SegmentCache(self._folder, shape.segment_bytes, shape.segments + 2)
        self._segment: MappedSegment | None = None
        self._number = 0
        self._room = shape.segment_bytes - kernels.TAIL
        self._columns: I64 = np.zeros((kernels.COLUMNS, RECORDS_MAX), np.int64)  # pages come when they are used
        self._state: I64 = np.zeros(kernels.STATE_WORDS, np.int64)
        self._marks: deque[tuple[int, int]] = deque(maxlen=_MARKS_MAX)  # (offset, events below it)
        self._state[kernels.OFFSET] = self.start_offset()
        self._quiet_ms = 0  # promised
        self._held_mark, self._held_offset, self._held_since_s = 0, 0, 0.0  # of an append seen under way; monotonic

    def start_offset(self) -> int:
        return int(kernels.read_word(self._row, kernels.START_OFFSET))

    def end_offset(self) -> int:
        return int(kernels.read_word(self._row, kernels.END_OFFSET))

    def position(self) -> int:
        return int(self._state[kernels.OFFSET])

    def poll(self, *, bytes_max: int, wait_ms: int) -> Records:
        """See ``LogReader.poll``. One segment's records at a time, at most RECORDS_MAX of them."""
        count = self._take(bytes_max)
        if not count and wait_ms > 0:
            until = time.monotonic() + wait_ms / 1000
            steps = 0
            while not count and (left := until - time.monotonic()) > 0:
                time.sleep(min(left, _POLL_STEP_S[min(steps, len(_POLL_STEP_S) - 1)]))
                steps += 1
                count = self._take(bytes_max)
        offset = int(self._state[kernels.OFFSET])
        segment = self._segment
        if not count or segment is None:
            return Records.empty(self.partition, offset)
        self._marks.append((offset, int(self._state[kernels.EVENTS])))
        starts, ends, offsets, append_ms = self._columns[: kernels.EVENTS_TOTAL, :count]
        return Records(self.partition, segment.array, starts, ends, offsets, append_ms, offset)

    def _take(self, bytes_max: int) -> int:
        """Records that are there now, as columns. Follows the log into its next segment."""
        while True:
            segment = self._held()
            if segment is None:
                return 0
            start = self._number * self._shape.segment_bytes
            count = int(kernels.walk(segment.array, self._row, self._columns, self._state, start, self._room, bytes_max, self._verify))
            if count:
                return count
            status = self._state[kernels.STATUS]
            if status == kernels.BROKEN:
                raise self._damage()
            if status == kernels.NO_MORE:
                if self.position() > self.end_offset():
                    raise self._out_of_range(self.position())  # a recovery cut the log back
                return 0
            self._enter(self._number + 1, self.position())

    def _held(self) -> MappedSegment | None:
        """The segment of our place, held; None where nothing was ever written. ``OffsetOutOfRange`` where it was dropped."""
        if self._closed:
            raise LogClosed(f"{self._folder}: the reader was closed")
        if self._segment is not None and kernels.read_word(self._row, kernels.FIRST_SEGMENT) > self._number:
            if self.position() < self.start_offset():
                raise self._out_of_range(self.position())
            self._leave()  # we were at its end, and that is where the log begins now
        if self._segment is None and self.end_offset() > 0:
            self._enter_at(self.position())
        return self._segment

    def _enter(self, number: int, wanted: int) -> SegmentHead:
        """Let go of the segment in use and hold ``number``, at its first record, on the way to offset ``wanted``."""
        self._leave()
        taken = self._cache.take(number)
        if taken is None:
            if kernels.read_word(self._row, kernels.FIRST_SEGMENT) > number:
                raise self._out_of_range(wanted)
            raise LogCorrupt(f"{segment_path(self._folder, number)} is gone, or not the log's")
        self._segment, head = taken
        self._number = number
        self._state[kernels.AT] = kernels.SEGMENT_HEAD
        self._state[kernels.OFFSET] = head.first_offset
        self._state[kernels.EVENTS] = head.events_before
        return head

    def _leave(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.unlock()

    def seek(self, offset: int) -> None:
        """See ``LogReader.seek``. Looks at the heads of one segment's records."""
        if self._closed:
            raise LogClosed(f"{self._folder}: the reader was closed")
        if not self.start_offset() <= offset <= self.end_offset():
            raise self._out_of_range(offset)
        self._marks.clear()
        if self.end_offset() == 0:
            self._state[kernels.OFFSET] = 0
            return
        self._enter_at(offset)

    def _enter_at(self, offset: int) -> None:
        """Hold the segment that ``offset`` lies in, at its record."""
        place = self.position()
        try:
            number = int(kernels.read_word(self._row, kernels.COMMITTED)) // self._shape.segment_bytes
            while self._enter(number, offset).first_offset > offset:
                number -= 1  # below the first: ``_enter`` refuses
            self._skip_to(offset)
        except BaseException:
            self._leave()
            self._state[kernels.OFFSET] = place
            raise
        self._marks.append((offset, int(self._state[kernels.EVENTS])))

    def _skip_to(self, offset: int) -> None:
        segment = self._segment
        while segment is not None and self.position() < offset:
            limit = min(int(kernels.read_word(self._row, kernels.COMMITTED)) - self._number * self._shape.segment_bytes, self._room)
            status = kernels.skip(segment.array, self._state, limit, offset)
            if status == kernels.BROKEN:
                raise self._damage()
            if status == kernels.SEGMENT_END:
                raise self._out_of_range(offset)
            if status == kernels.NO_MORE and offset > self.end_offset():
                raise self._out_of_range(offset)

    def _damage(self) -> LogCorrupt:
        path = segment_path(self._folder, self._number)
        return LogCorrupt(f"{path}: the record of offset {self.position()} at byte {self._state[kernels.AT]} is damaged")

    def _out_of_range(self, offset: int) -> OffsetOutOfRange:
        return OffsetOutOfRange(f"{self._folder}: offset {offset} is not in the log, which holds {self.start_offset()} to {self.end_offset() - 1}")

    def quiet_until(self, now_ms: int) -> int:
        """See ``LogReader.quiet_until``, and ``kernels.log`` for why it is true. Times below 0 do not exist."""
        if self._closed:
            raise LogClosed(f"{self._folder}: the reader was closed")
        mark = int(kernels.hold_back(self._row, now_ms))
        bound_ms = mark - 1 if mark and not self._is_given_up(mark) else now_ms
        if self.end_offset() == self.position():  # asked last
            self._quiet_ms = max(self._quiet_ms, min(now_ms, bound_ms))
        return min(self._quiet_ms, now_ms)

    def _is_given_up(self, mark: int) -> bool:
        """Whether the append with this mark is under way for too long. No two appends of one offset are."""
        now_s, offset = time.monotonic(), self.end_offset()
        if (mark, offset) != (self._held_mark, self._held_offset):
            self._held_mark, self._held_offset, self._held_since_s = mark, offset, now_s
        return now_s - self._held_since_s > APPEND_HELD_MAX_S

    def take_gaps(self) -> list[Gap]:
        """See ``LogReader.take_gaps``: a damaged record raises ``LogCorrupt`` here."""
        return []

    def commit(self, offset: int) -> None:
        """See ``LogReader.commit``. Event counts are exact where ``offset`` ends a poll, else those of the poll before."""
        events = self._events_below(offset, forget=True)
        kernels.raise_word(self._row, kernels.EVENTS_CONSUMED, events)
        kernels.raise_word(self._row, kernels.CONSUMED_OFFSET, offset)

    def processed(self, offset: int) -> None:
        """See ``LogReader.processed``. The last reader to say so counts: a restarted one starts over."""
        kernels.write_word(self._row, kernels.EVENTS_PROCESSED, self._events_below(offset, forget=False))

    def _events_below(self, offset: int, *, forget: bool) -> int:
        if self._closed:
            raise LogClosed(f"{self._folder}: the reader was closed")
        if not 0 <= offset <= self.end_offset():
            raise self._out_of_range(offset)
        if not self._marks or offset < self._marks[0][0]:
            return 0
        if not forget:
            return next(events for mark, events in reversed(self._marks) if mark <= offset)
        while len(self._marks) > 1 and self._marks[1][0] <= offset:
            self._marks.popleft()
        return self._marks[0][1]

    def close(self) -> None:
        """See ``LogReader.close``. Views that are still held stay readable, but may change."""
        self._closed = True
        self._leave()
        self._cache.close()
