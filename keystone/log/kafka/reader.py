"""One reader's place in one partition: fetched chunks to ``Records``, without an object a record.

What cannot be read (a checksum that does not match) is fetched again up to CORRUPT_TRIES_MAX times, because the bytes may have
been damaged on the way; then the batch is passed over and its offsets are a counted ``Gap``. Nothing is ever skipped otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from keystone.errors import LogClosed, LogCorrupt, LogError, OffsetOutOfRange
from keystone.events import I64, Records
from keystone.log.base import Gap
from keystone.log.kafka.batches import BadBatch, Batch, Columns, Unreadable, batches_of
from keystone.log.kafka.client import EARLIEST, LATEST, log
from keystone.log.kafka.fetcher import Chunk, Fetcher, Place
from keystone.log.kafka.owner import Owner

CORRUPT_TRIES_MAX: Final = 3
RECORDS_MAX: Final = 65_536  # of one poll
LATE_MARGIN_MS: Final = 50  # beyond the latest append that was seen


class KafkaReader:
    """See ``LogReader``. One thread polls; ``close`` may come from another."""

    def __init__(self, owner: Owner, fetcher: Fetcher, partition: int, start_offset: int, on_commit: Callable[[int, int], None]) -> None:
        self.partition = partition
        self.late_appends = 0  # records from before what was promised: brokers' clocks are further behind than allowed for
        self._log = owner
        self._fetcher = fetcher
        self._on_commit = on_commit
        self._place = Place(partition, start_offset, owner.topic_id)
        self._position = start_offset
        self._columns = Columns()
        self._at = 0  # in the columns
        self._behind = start_offset  # the offset behind everything in the columns
        self._has_read_to = -1  # the same, where an intact batch ends there
        self._batches: Iterator[Batch | Unreadable] = iter(())
        self._damaged_at, self._damages = -1, 0
        self._gaps: list[Gap] = []
        self._last_ms = 0  # append time
        self._quiet_ms = 0  # promised
        self._late_max_ms = owner.append_late_max_ms()
        self._events, self._records = 0, 0  # read so far: how many events a record holds
        self._processed = self._committed = start_offset
        fetcher.add(self._place)

    # --- polling --------------------------------------------------------------------------------------------------------
    def poll(self, *, bytes_max: int, wait_ms: int) -> Records:
        """See ``LogReader.poll``."""
        until = time.monotonic() + wait_ms / 1_000
        while True:
            self._check_open()
            if self._at >= self._columns.count:
                self._fill(bytes_max)
            if self._at < self._columns.count:
                return self._slice(bytes_max)
            self._position = self._behind
            if not self._wait(until):
                return Records.empty(self.partition, self._position)

    def _wait(self, until: float) -> bool:
        """Until something was fetched; False where the time is over. Raises what keeps more from coming."""
        place = self._place
        with place.changed:
            while not place.chunks and place.fault is None and not place.is_closed:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                place.changed.wait(left)
            fault = None if place.chunks or place.is_closed else place.fault
        if fault is not None:
            raise self._fault(fault)
        return True

    def _fault(self, fault: Exception) -> Exception:
        if type(fault) is OffsetOutOfRange:
            return self._out_of_range(self._behind)
        return type(fault)(*fault.args)  # a fresh one: it may be raised many times

    def _slice(self, bytes_max: int) -> Records:
        """Some of the records in the columns: all, mostly."""
        starts, ends, offsets, append_ms = self._columns.places
        first, last = self._at, self._columns.count
        if last - first > 1 and int(ends[last - 1] - starts[first]) > bytes_max:
            sizes = np.cumsum(ends[first:last] - starts[first:last])
            last = first + 1 + int(np.searchsorted(sizes, bytes_max, side="left"))
            last = min(last, self._columns.count)
        last = min(last, first + RECORDS_MAX)
        self._at = last
        self._position = self._behind if last == self._columns.count else int(offsets[last])
        text = self._columns.text
        return Records(self.partition, text, starts[first:last], ends[first:last], offsets[first:last], append_ms[first:last], self._position)

    # --- filling ----------------------------------------------------------------------------------------------------------
    def _fill(self, bytes_max: int) -> None:
        """Read whole batches into fresh columns, about ``bytes_max`` of them."""
        self._columns.clear()
        self._at = 0
        while self._columns.size_bytes < bytes_max and self._columns.count < RECORDS_MAX:
            batch = next(self._batches, None)
            if batch is None:
                chunk = self._next_chunk()
                if chunk is None:
                    break
                limit = max(self._place.end_offset, chunk.next_offset)
                self._batches = batches_of(chunk.data, self._behind, limit, is_first=self._has_read_to == self._behind)
            elif isinstance(batch, Unreadable):
                if not self._pass_over(batch):
                    break
            elif batch.last_offset >= self._behind:
                try:
                    self._take(batch)
                except BadBatch as bad:
                    if not self._pass_over(Unreadable(batch.base_offset, batch.last_offset, str(bad), has_end=True)):
                        break
        self._settle()

    def _take(self, batch: Batch) -> None:
        if not batch.is_control:
            self._columns.take(batch, self._behind)
        self._behind = self._has_read_to = batch.last_offset + 1

    def _next_chunk(self) -> Chunk | None:
        place = self._place
        with place.changed:
            if not place.chunks:
                return None
            chunk = place.chunks.popleft()
            place.chunk_bytes -= len(chunk.data)
        self._fetcher.wake_for_room()
        return chunk

    def _pass_over(self, bad: Unreadable) -> bool:
        """Fetch a damaged batch once more, or count it as a gap and go on behind it; False where it is fetched again."""
        if bad.has_end and bad.last_offset < self._behind:
            return True  # before the place that was sought, or counted already: brokers find batches by headers that may be damaged
        where = f"{self._log.url}, partition {self.partition}, offsets {bad.first_offset} to {bad.last_offset}"
        if self._damaged_at != self._behind:
            self._damaged_at, self._damages = self._behind, 0
        self._damages += 1
        if self._damages < CORRUPT_TRIES_MAX:
            self._go_to(self._behind)
            return False
        if not bad.has_end:
            self._go_to(self._behind, LogCorrupt(f"{where}: cannot be read ({bad.why}), nor where it ends: seek behind it, or make the topic anew"))
            return False
        log.error("%s cannot be read (%s): passed over", where, bad.why)
        self._gaps.append(Gap(self.partition, max(self._behind, bad.first_offset), bad.last_offset, "corrupt"))
        self._behind = bad.last_offset + 1
        return True

    def _settle(self) -> None:
        """Hold append times to their order, and to what was promised; count events for the lag."""
        columns = self._columns
        if not columns.count:
            return
        append_ms: I64 = columns.places[3]
        if not columns.has_append_times:
            np.minimum(append_ms, int(time.time() * 1_000), out=append_ms)
        if (first_ms := int(append_ms.min())) < self._quiet_ms:
            self.late_appends += int((append_ms < self._quiet_ms).sum())
            if columns.has_append_times:  # a producer's clock may be any time behind: nothing is held back for one
                self._hold_back(first_ms)
        append_ms[0] = max(int(append_ms[0]), self._last_ms, self._quiet_ms)
        np.maximum.accumulate(append_ms, out=append_ms)
        self._last_ms = int(append_ms[-1])
        self._events += columns.events
        self._records += columns.count

    def _hold_back(self, append_ms: int) -> None:
        late_ms = self._quiet_ms - append_ms
        self._late_max_ms += late_ms + LATE_MARGIN_MS
        log.warning(
            "%s, partition %d: a record is %d ms from before log time: a broker's clock is behind; log time is held back by %d ms from now on",
            self._log.url, self.partition, late_ms, self._late_max_ms,
        )  # fmt: skip

    # --- moving -----------------------------------------------------------------------------------------------------------
    def seek(self, offset: int) -> None:
        """See ``LogReader.seek``. Where the topic was made anew, its new self is read from now on."""
        self._check_open()
        start, end = self.start_offset(), self.end_offset()
        if not start <= offset <= end:
            raise self._out_of_range(offset, start, end)
        self._log.know_topic()
        if self._place.topic_id != self._log.topic_id:
            self._place.topic_id = self._log.topic_id
            self._processed = self._committed = offset
        elif offset < self._position:
            self._quiet_ms = self._last_ms = 0  # records from before what was promised are to be polled again
        self._go_to(offset)
        self._columns.clear()
        self._at = 0
        self._position = self._behind = offset
        self._has_read_to = self._damaged_at = -1

    def _go_to(self, offset: int, fault: LogError | None = None) -> None:
        """Fetch from ``offset`` on, unless ``fault`` forbids it; what was fetched is forgotten."""
        self._batches = iter(())
        with self._place.changed:
            self._place.move(offset)
            self._place.fault = fault
        self._fetcher.wake()

    def _check_open(self) -> None:
        if self._place.is_closed or self._log.is_closed:
            raise LogClosed(f"{self._log.url}, partition {self.partition}: the reader was closed")

    def _out_of_range(self, offset: int, start: int | None = None, end: int | None = None) -> OffsetOutOfRange:
        try:
            start = self.start_offset() if start is None else start
            end = self.end_offset() if end is None else end
            held = f"which holds {start} to {end - 1}"
        except LogError:
            held = "as its broker says"
        return OffsetOutOfRange(f"{self._log.url}, partition {self.partition}: offset {offset} is not in the log, {held}")

    def start_offset(self) -> int:
        self._check_open()
        return self._log.offset(self.partition, EARLIEST)

    def end_offset(self) -> int:
        self._check_open()
        return self._log.offset(self.partition, LATEST)

    def end_known(self) -> int:
        """The end as of the last fetch; asks nobody, and may be behind ``end_offset``."""
        return max(self._place.end_offset, self._position)

    def position(self) -> int:
        return self._position

    # --- time, gaps and lag -----------------------------------------------------------------------------------------------
    def quiet_until(self, now_ms: int) -> int:
        """See ``LogReader.quiet_until``.

        A fetch that was sent at T and found nothing, the leader's own log having ended there, says that whatever comes later is
        appended after T, by the broker's clock; ``kafka.append_late_max_ms`` is held back for clocks that differ (less for a lone
        broker on this machine). A broker that is further behind is noticed by the first record, then counted, told, and allowed for.
        """
        self._check_open()
        place = self._place
        with place.changed:
            is_empty = not place.chunks and place.next_offset == self._behind and self._at >= self._columns.count
            empty_since_ms = place.empty_since_ms
        if is_empty and empty_since_ms:
            self._quiet_ms = max(self._quiet_ms, min(now_ms, empty_since_ms - self._late_max_ms))
        return min(self._quiet_ms, now_ms)

    def take_gaps(self) -> list[Gap]:
        gaps, self._gaps = self._gaps, []
        return gaps

    def commit(self, offset: int) -> None:
        """See ``LogReader.commit``: nothing is dropped by it here; the group's offset follows, for lag tools."""
        self._check_written(offset)
        self._committed = max(self._committed, offset)
        self._on_commit(self.partition, offset)

    def processed(self, offset: int) -> None:
        self._check_written(offset)
        self._processed = offset

    def _check_written(self, offset: int) -> None:
        self._check_open()
        if not 0 <= offset <= max(self._position, self._place.end_offset) and not 0 <= offset <= self.end_offset():
            raise self._out_of_range(offset)

    @property
    def lag_records(self) -> int:
        """Records behind what was reported processed, as of the last fetch."""
        return max(0, self._place.end_offset - max(self._processed, self._committed, self._place.start_offset))

    @property
    def lag_events(self) -> int:
        """The same in events, by how many the records read so far held; exact only where all hold as many."""
        return round(self.lag_records * (self._events / self._records if self._records else 1.0))

    @property
    def is_closed(self) -> bool:
        return self._place.is_closed

    def close(self) -> None:
        with self._place.changed:
            self._place.is_closed = True
            self._place.changed.notify_all()
        self._fetcher.remove(self._place)
