"""A log in this process's memory: the same promises as the embedded one, for tests and for sources made on the spot."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from keystone.clock import Clock, SystemClock
from keystone.errors import LogClosed, LogFull, LogInUse, OffsetOutOfRange, RecordTooLarge, UsageError
from keystone.events import U8, Records
from keystone.log.base import Appended, Gap, Sent

RECORDS_MAX: Final = 65_536  # of one poll


@dataclass(frozen=True, slots=True)
class _Record:
    value: bytes
    append_ts_ms: int
    events_below: int  # of all records before this one


@dataclass(slots=True)
class _Partition:
    """Records and counters of one partition; all under ``changed``'s lock."""

    records: deque[_Record] = field(default_factory=deque)
    start_offset: int = 0
    retained_bytes: int = 0
    last_append_ts_ms: int = 0
    floor_ms: int = 0  # promised to a reader
    events_appended: int = 0
    events_processed: int = 0
    events_consumed: int = 0
    consumed_offset: int = 0
    is_written: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def end_offset(self) -> int:
        return self.start_offset + len(self.records)

    def events_below(self, offset: int) -> int:
        if offset <= self.start_offset:
            return self.records[0].events_below if self.records and offset == self.start_offset else 0
        return self.events_appended if offset >= self.end_offset else self.records[offset - self.start_offset].events_below

    def make_room(self, wanted_bytes: int, retention_bytes: int) -> bool:
        """Drop consumed records, oldest first, until ``wanted_bytes`` fit; False where too few are consumed."""
        while self.records and self.start_offset < self.consumed_offset and self.retained_bytes + wanted_bytes > retention_bytes:
            self.retained_bytes -= len(self.records.popleft().value)
            self.start_offset += 1
        return not self.records or self.retained_bytes + wanted_bytes <= retention_bytes


class MemoryLog:
    """``retention_bytes`` of values a partition; what is consumed is dropped when its room is needed."""

    def __init__(
        self,
        *,
        partitions: int,
        retention_bytes: int = 64 << 20,
        record_bytes_max: int = 4 << 20,
        append_wait_max_ms: int = 30_000,
        clock: Clock | None = None,
    ) -> None:
        self.partitions = partitions
        self.retention_bytes = retention_bytes
        self.record_bytes_max = min(record_bytes_max, retention_bytes)
        self.append_wait_max_ms = append_wait_max_ms
        self.clock: Clock = clock or SystemClock()
        self._kept = [_Partition() for _ in range(partitions)]
        self._given: list[MemoryWriter | MemoryReader] = []
        self._closed = False

    def _partition(self, partition: int) -> _Partition:
        if self._closed:
            raise LogClosed("the log was closed")
        if not 0 <= partition < self.partitions:
            raise UsageError(f"no partition {partition}: there are 0 to {self.partitions - 1}")
        return self._kept[partition]

    @property
    def log_id(self) -> str:
        """See ``Log.log_id``."""
        return f"memory {id(self):x}"

    def writer(self, partition: int) -> MemoryWriter:
        kept = self._partition(partition)
        with kept.changed:
            if kept.is_written:
                raise LogInUse(f"partition {partition} is being written by this process")
            kept.is_written = True
        writer = MemoryWriter(self, kept)
        self._given.append(writer)
        return writer

    def reader(self, partition: int) -> MemoryReader:
        reader = MemoryReader(partition, self._partition(partition))
        self._given.append(reader)
        return reader

    def lag(self, partition: int) -> int:
        kept = self._partition(partition)
        with kept.changed:
            return max(0, kept.events_appended - max(kept.events_processed, kept.events_consumed))

    def close(self) -> None:
        self._closed = True
        while self._given:
            self._given.pop().close()


class MemoryWriter:
    """The only writer of one partition."""

    def __init__(self, log: MemoryLog, kept: _Partition) -> None:
        self.sent = Sent()
        self._log = log
        self._kept = kept
        self._closed = False

    def append(self, value: bytes | memoryview | U8, *, events: int = 1) -> Appended:
        """See ``LogWriter.append``."""
        copied = bytes(value)
        if len(copied) > self._log.record_bytes_max:
            raise RecordTooLarge(f"a record of {len(copied):,} bytes is over record_bytes_max = {self._log.record_bytes_max:,}")
        kept = self._kept
        with kept.changed:
            self._wait_for_room(len(copied))
            append_ms = max(self._log.clock.now_ms(), kept.last_append_ts_ms, kept.floor_ms)
            kept.last_append_ts_ms = append_ms
            kept.records.append(_Record(copied, append_ms, kept.events_appended))
            kept.events_appended += events
            kept.retained_bytes += len(copied)
            kept.changed.notify_all()
            self.sent.acknowledged += 1
            self.sent.acknowledged_events += events
            return Appended(kept.end_offset - 1, append_ms)

    def send(self, value: bytes | memoryview | U8, *, events: int = 1, key: bytes | None = None) -> None:  # noqa: ARG002 - no keys here
        """See ``LogWriter.send``: the outcome is known at once here."""
        self.append(value, events=events)

    def flush(self, *, wait_s: float) -> bool:  # noqa: ARG002 - the contract's signature
        """See ``LogWriter.flush``."""
        return True

    def _wait_for_room(self, wanted_bytes: int) -> None:
        kept, log = self._kept, self._log
        until = time.monotonic() + log.append_wait_max_ms / 1000
        while True:
            if self._closed:
                raise LogClosed("the writer was closed")
            if kept.make_room(wanted_bytes, log.retention_bytes):
                return
            left = until - time.monotonic()
            if left <= 0:
                raise LogFull(f"no room for {log.append_wait_max_ms} ms: {kept.retained_bytes:,} bytes are retained and not consumed")
            kept.changed.wait(left)

    def close(self) -> None:
        with self._kept.changed:
            if not self._closed:
                self._kept.is_written = False
            self._closed = True
            self._kept.changed.notify_all()


class MemoryReader:
    """One reader's place in one partition."""

    def __init__(self, partition: int, kept: _Partition) -> None:
        self.partition = partition
        self._kept = kept
        self._closed = False
        self._offset = kept.start_offset
        self._quiet_ms = 0

    def poll(self, *, bytes_max: int, wait_ms: int) -> Records:
        """See ``LogReader.poll``."""
        kept = self._kept
        until = time.monotonic() + wait_ms / 1000
        with kept.changed:
            while True:
                self._check()
                if self._offset < kept.start_offset:
                    raise self._out_of_range(self._offset)
                taken = self._take(bytes_max)
                left = until - time.monotonic()
                if taken or left <= 0:
                    break
                kept.changed.wait(left)
        first, self._offset = self._offset, self._offset + len(taken)
        if not taken:
            return Records.empty(self.partition, first)
        return Records.of(
            [record.value for record in taken], partition=self.partition, first_offset=first, append_ts_ms=[record.append_ts_ms for record in taken]
        )

    def _take(self, bytes_max: int) -> list[_Record]:
        kept = self._kept
        taken: list[_Record] = []
        size_bytes = 0
        for index in range(self._offset - kept.start_offset, min(len(kept.records), self._offset - kept.start_offset + RECORDS_MAX)):
            if taken and size_bytes >= bytes_max:
                break
            taken.append(kept.records[index])
            size_bytes += len(taken[-1].value)
        return taken

    def _check(self) -> None:
        if self._closed:
            raise LogClosed("the reader was closed")

    def _out_of_range(self, offset: int) -> OffsetOutOfRange:
        kept = self._kept
        return OffsetOutOfRange(f"partition {self.partition}: offset {offset} is not in the log, which holds {kept.start_offset} to {kept.end_offset - 1}")

    def seek(self, offset: int) -> None:
        kept = self._kept
        with kept.changed:
            self._check()
            if not kept.start_offset <= offset <= kept.end_offset:
                raise self._out_of_range(offset)
            self._offset = offset

    def start_offset(self) -> int:
        return self._kept.start_offset

    def end_offset(self) -> int:
        return self._kept.end_offset

    def position(self) -> int:
        return self._offset

    def quiet_until(self, now_ms: int) -> int:
        """See ``LogReader.quiet_until``. An append takes its time and is published under one lock."""
        kept = self._kept
        with kept.changed:
            self._check()
            if self._offset == kept.end_offset:
                kept.floor_ms = max(kept.floor_ms, now_ms)
                self._quiet_ms = max(self._quiet_ms, now_ms)
            return min(self._quiet_ms, now_ms)

    def take_gaps(self) -> list[Gap]:
        return []

    def commit(self, offset: int) -> None:
        kept = self._kept
        with kept.changed:
            self._check()
            self._check_written(offset)
            kept.events_consumed = max(kept.events_consumed, kept.events_below(offset))
            kept.consumed_offset = max(kept.consumed_offset, offset)
            kept.changed.notify_all()

    def processed(self, offset: int) -> None:
        kept = self._kept
        with kept.changed:
            self._check()
            self._check_written(offset)
            kept.events_processed = kept.events_below(offset)

    def _check_written(self, offset: int) -> None:
        if not 0 <= offset <= self._kept.end_offset:
            raise self._out_of_range(offset)

    def close(self) -> None:
        with self._kept.changed:
            self._closed = True
            self._kept.changed.notify_all()
