"""The lake: every accepted event, once, in Parquet files under ``event_date=YYYY-MM-DD/``.

A file holds one partition's events of one day and is named by the offsets it spans:
``event_date=2026-09-21/p00003-00000000000000001200-00000000000000009812.parquet``. It is written in a hidden directory
beside the lake and renamed into place when it is complete: a reader sees whole files or none. (Inside the lake even a
hidden file would not do: Polars, asked for a directory, takes every file in it and refuses all for one of another kind.)
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from keystone.config import LakeConfig
from keystone.errors import SinkError, UsageError
from keystone.events import DICTIONARY_COLUMNS, I64, EventBatch
from keystone.kernels import lake as kernel
from keystone.sinks.lake_files import Compressor, DictionaryPage, ParquetFile, RowGroup
from keystone.sinks.lake_pages import DictionaryValues, GroupCodes, PageEncoder, Pages
from keystone.sinks.lake_schema import DICTIONARY_ROW
from keystone.sinks.lake_stage import Stage, batch_text_bytes, take

DIRECT_ROWS_MIN: Final = 2048  # a batch of so many rows is a page of its own, uncopied; smaller ones are collected
PAGE_ROWS_MAX: Final = 4096  # collected rows
PAGE_TEXT_BYTES_MAX: Final = 4 << 20  # and bytes of their strings
DAY_MS: Final = 86_400_000
LOG_REACH_MS: Final = 2 * DAY_MS  # a device clock further from the append time does not choose the folder
FILE_REACH_MS: Final = 30 * DAY_MS  # in a plain file: from its first accepted event


def file_name(partition: int, first_offset: int, last_offset: int) -> str:
    return f"p{partition:05d}-{first_offset:020d}-{last_offset:020d}.parquet"


def folder_name(day: int) -> str:
    """``day`` counts from the epoch."""
    return f"event_date={np.datetime64(day, 'D')}"


@dataclass(slots=True)
class _OpenFile:
    """A file being written. Only the writing thread touches it after it was made."""

    parquet: ParquetFile
    group: RowGroup = field(default_factory=RowGroup)
    cached: dict[tuple[int, int], DictionaryPage] = field(default_factory=dict)


@dataclass(slots=True)
class _Stream:
    """What the caller's side knows of the open file of one partition and day."""

    partition: int
    day: int
    file: _OpenFile
    stage: Stage
    codes: GroupCodes
    first_offset: int
    last_offset: int
    group_rows: int = 0
    group_bytes: int = 0
    file_rows: int = 0
    file_bytes: int = 0
    opened_ms: int | None = None


class LakeWriter:
    """Writes the accepted events of any number of partitions. One thread calls it; a thread of its own compresses and writes.

    ``append`` any number of times, then ``end_step`` where a step ends: only there are files closed, so that no log record's
    events are spread over two files of a day. ``has_log_time=False`` for plain files: ``append_ts`` is null and the folders
    follow ``anchor_ts_ms``, the ts of the file's first accepted event (learnt from the first batch if not given).

    Opening sweeps the unfinished files that a dead run left in ``partitions``. Errors of the file system are raised by the
    next call as one ``SinkError``, after which no unfinished file of ours is left and every further call raises it again.
    """

    def __init__(
        self, directory: Path | str, config: LakeConfig, *, partitions: Iterable[int] = (), has_log_time: bool = True, anchor_ts_ms: int | None = None
    ) -> None:
        self.directory = Path(directory)
        self.anchor_ts_ms = anchor_ts_ms
        self._rows: dict[int, int] = {}  # appended, by partition
        self._config = config
        self._has_log_time = has_log_time
        self._encoder = PageEncoder(has_log_time=has_log_time)
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._known: set[int] = set()
        self._days: I64 = np.zeros(0, np.int64)
        self._caller_cpu_seconds = 0.0
        self._names = 0
        try:
            self._writing = _writing_directory(self.directory)
        except OSError as error:
            raise UsageError(f"the lake cannot be made at {self.directory}: {error.strerror}; choose another directory") from error
        for partition in partitions:
            self._open_partition(partition)
        self._thread = _WritingThread(config.queue_bytes_max, self._encoder)

    # --- what it tells ------------------------------------------------------------------------------------------------
    @property
    def rows(self) -> int:
        """Rows appended."""
        return sum(self._rows.values())

    @property
    def rows_written(self) -> int:
        """Rows in files that are in place."""
        return self._thread.rows

    @property
    def bytes(self) -> int:
        """Bytes of files that are in place."""
        return self._thread.bytes

    @property
    def files(self) -> int:
        """Files in place."""
        return self._thread.files

    @property
    def cpu_seconds(self) -> float:
        """CPU time spent in calls and in the writing thread."""
        return self._caller_cpu_seconds + self._thread.cpu_seconds

    @property
    def wait_seconds(self) -> float:
        """Time for which calls had to wait because the queue was full."""
        return self._thread.wait_seconds

    @property
    def memory_bytes(self) -> int:
        """Encoded pages held: queued, and of open row groups."""
        return self._thread.queued_bytes + sum(stream.group_bytes for stream in self._streams.values())

    # --- what it does ---------------------------------------------------------------------------------------------------
    def append(self, batch: EventBatch, dictionaries: DictionaryValues) -> None:
        """Take every row of ``batch``, which may be overwritten afterwards. Waits while the queue is full."""
        started = time.thread_time()
        self._thread.check()
        if batch.rows:
            for day, part in self._by_day(batch):
                self._append_day(day, part, dictionaries)
            self._rows[batch.partition] = self._rows.get(batch.partition, 0) + batch.rows
        self._caller_cpu_seconds += time.thread_time() - started

    def end_step(self, now_ms: int) -> None:
        """A record boundary: close the files that are large or old enough. Call it also when nothing was appended."""
        started = time.thread_time()
        self._thread.check()
        for stream in list(self._streams.values()):
            if stream.opened_ms is None:
                stream.opened_ms = now_ms
            is_old = now_ms - stream.opened_ms >= self._config.file_age_max_ms
            if is_old or stream.file_rows >= self._config.file_rows_max or stream.file_bytes >= self._config.file_bytes_max:
                self._close_file(stream)
        self._caller_cpu_seconds += time.thread_time() - started

    def flush(self) -> None:
        """Put everything appended into place. Call it between steps only."""
        for stream in list(self._streams.values()):
            self._close_file(stream)
        self._thread.wait_until_idle()

    def close(self) -> int:
        """Flush and stop; returns the rows in place. May be repeated; raises what went wrong, each time."""
        try:
            if not self._thread.is_stopped:
                self.flush()
        finally:
            self._thread.stop()
            self._leave()
        self._thread.check_error()
        return self.rows_written

    def abort(self) -> None:
        """Stop and remove what is not in place. Never raises."""
        self._streams.clear()
        self._thread.stop(discard=True)
        self._leave()

    def discard_partition(self, partition: int) -> None:
        """Remove every file of a partition that will be written again from offset 0: those in place and those being written."""
        for key in [key for key in self._streams if key[0] == partition]:
            stream = self._streams.pop(key)
            self._thread.put(0, lambda file=stream.file: self._thread.drop(file))  # type: ignore[misc]
        self._thread.wait_until_idle()
        for path in self.directory.glob(f"event_date=*/p{partition:05d}-*.parquet"):
            path.unlink(missing_ok=True)
        self._thread.forget(partition)
        self._rows.pop(partition, None)
        self._sweep(partition)

    # --- inside -----------------------------------------------------------------------------------------------------------
    def _open_partition(self, partition: int) -> None:
        self._known.add(partition)
        self._sweep(partition)

    def _sweep(self, partition: int) -> None:
        for path in self._writing.glob(f"p{partition:05d}-*.tmp"):
            path.unlink(missing_ok=True)

    def _leave(self) -> None:
        with suppress(OSError):  # others still write there
            self._writing.rmdir()

    def _by_day(self, batch: EventBatch) -> list[tuple[int, EventBatch]]:
        rows = batch.rows
        if self._days.size < rows:
            self._days = np.zeros(rows, np.int64)
        if self.anchor_ts_ms is None:
            self.anchor_ts_ms = int(batch.ts[0])
        reach = LOG_REACH_MS if self._has_log_time else FILE_REACH_MS
        low, high = kernel.day_range(batch.ts, batch.append_ts_ms, rows, self.anchor_ts_ms, reach, int(self._has_log_time), self._days)
        if low == high:
            return [(int(low), batch)]
        days = self._days[:rows]
        return [(int(day), take(batch, np.flatnonzero(days == day))) for day in np.unique(days)]

    def _append_day(self, day: int, batch: EventBatch, dictionaries: DictionaryValues) -> None:
        stream = self._stream(day, batch, dictionaries)
        stream.last_offset = int(batch.offset[batch.rows - 1])
        stream.file_rows += batch.rows
        size = batch_text_bytes(batch)
        if batch.rows >= DIRECT_ROWS_MIN or size >= PAGE_TEXT_BYTES_MAX:
            self._end_page(stream)
            self._put_page(stream, batch)
            return
        if stream.stage.rows + batch.rows > PAGE_ROWS_MAX or stream.stage.text_bytes + size > PAGE_TEXT_BYTES_MAX:
            self._end_page(stream)
        stream.stage.append(batch)

    def _stream(self, day: int, batch: EventBatch, dictionaries: DictionaryValues) -> _Stream:
        stream = self._streams.get((batch.partition, day))
        if stream is None:
            return self._open_file(day, batch, dictionaries)
        if stream.codes.dictionaries is not dictionaries:  # other codes: another row group
            self._end_page(stream)
            self._end_group(stream)
            self._thread.put(0, stream.file.cached.clear)
            stream.codes = GroupCodes(dictionaries)
        return stream

    def _open_file(self, day: int, batch: EventBatch, dictionaries: DictionaryValues) -> _Stream:
        if batch.partition not in self._known:
            self._open_partition(batch.partition)
        self._names += 1
        first = int(batch.offset[0])
        path = self._writing / f"p{batch.partition:05d}-{np.datetime64(day, 'D')}-{first:020d}-{os.getpid()}-{self._names}.tmp"
        file = _OpenFile(ParquetFile(path))
        stream = _Stream(batch.partition, day, file, Stage(batch.partition), GroupCodes(dictionaries), first, first)
        self._streams[batch.partition, day] = stream
        return stream

    def _put_page(self, stream: _Stream, batch: EventBatch) -> None:
        pages = self._encoder.encode(batch, stream.codes)
        stream.group_rows += pages.rows
        stream.group_bytes += pages.bytes
        stream.file_bytes += pages.bytes
        file = stream.file
        self._thread.put(pages.bytes, lambda: self._thread.add(file, pages))
        if stream.group_rows >= self._config.row_group_rows or stream.group_bytes >= self._config.row_group_bytes_max:
            self._end_group(stream)

    def _end_page(self, stream: _Stream) -> None:
        if stream.stage.rows:
            self._put_page(stream, stream.stage.take_all())

    def _end_group(self, stream: _Stream) -> None:
        if not stream.group_rows:
            return
        file, is_local = stream.file, stream.codes.is_local.tolist()
        values = stream.codes.values()
        stream.group_rows = stream.group_bytes = 0
        self._thread.put(0, lambda: self._thread.end_group(file, values, is_local))

    def _close_file(self, stream: _Stream) -> None:
        self._end_page(stream)
        self._end_group(stream)
        del self._streams[stream.partition, stream.day]
        target = self.directory / folder_name(stream.day) / file_name(stream.partition, stream.first_offset, stream.last_offset)
        self._thread.put(0, lambda: self._thread.finish(stream.file, target, stream.partition))


def _writing_directory(directory: Path) -> Path:
    """Make the lake, and a directory for its unfinished files on the same file system. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    writing = directory.absolute().with_name(f".{directory.absolute().name}.writing")
    if directory.stat().st_dev != directory.absolute().parent.stat().st_dev:  # a mount point: no rename across
        writing = directory / ".writing"
    writing.mkdir(exist_ok=True)
    return writing


class _WritingThread:
    """Runs what is put into its bounded queue, in order. Holds the first error, and does nothing more after it."""

    def __init__(self, queue_bytes_max: int, encoder: PageEncoder) -> None:
        self.bytes = self.files = 0
        self.cpu_seconds = self.wait_seconds = 0.0
        self.queued_bytes = 0
        self.is_stopped = False
        self._queue_bytes_max = queue_bytes_max
        self._encoder = encoder
        self._compressor = Compressor()
        self._partition_rows: dict[int, int] = {}
        self._temporary: set[Path] = set()
        self._error: SinkError | None = None
        self._work: deque[tuple[int, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="lake", daemon=True)
        self._thread.start()

    # --- the caller's side --------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Raise what went wrong, if anything did, or that it was stopped."""
        self.check_error()
        if self.is_stopped:
            raise SinkError("the lake was closed")

    def check_error(self) -> None:
        if self._error is not None:
            raise self._error

    def put(self, size: int, work: Callable[[], None]) -> None:
        """Queue ``work``, that holds ``size`` bytes. Waits while more than the limit are queued."""
        with self._changed:
            if self.queued_bytes >= self._queue_bytes_max:
                started = time.monotonic()
                self._changed.wait_for(lambda: self.queued_bytes < self._queue_bytes_max or self._error is not None)
                self.wait_seconds += time.monotonic() - started
            self._work.append((size, work))
            self.queued_bytes += size
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Wait until all that was put is done; raise if it failed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._work and not self._is_busy)
        self.check_error()

    def stop(self, *, discard: bool = False) -> None:
        """End the thread after, or with ``discard`` before, what is queued."""
        with self._changed:
            if discard:
                self._work.clear()
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join()
        self._remove_temporary()
        self.is_stopped = True

    def fail(self, error: OSError, path: Path) -> None:
        """Keep the first error as one that says what to do, and remove what is unfinished."""
        if self._error is None:
            self._error = SinkError(f"the lake cannot write {path}: {error.strerror or error}; free room there or choose another directory")
        self._remove_temporary()

    @property
    def rows(self) -> int:
        return sum(self._partition_rows.values())

    def forget(self, partition: int) -> None:
        """The partition's files were removed."""
        self._partition_rows.pop(partition, None)

    # --- the thread's side --------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._work) or self._is_stopping)
                if not self._work:
                    return
                size, work = self._work.popleft()
                self._is_busy = True
            if self._error is None:
                self._do(work)
            self.cpu_seconds = time.thread_time()
            with self._changed:
                self.queued_bytes -= size

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a thread that dies silently would leave its caller waiting for ever
            self._error = SinkError(f"the lake's writing thread failed: {type(error).__name__}: {error}")
            self._error.__cause__ = error
            self._remove_temporary()

    def add(self, file: _OpenFile, pages: Pages) -> None:
        file.group.add(pages.rows, pages.out, pages.table, self._compressor)
        self._encoder.release(pages)

    def end_group(self, file: _OpenFile, values: list[pa.Array], is_local: list[int]) -> None:
        def dictionary_page(row: int) -> DictionaryPage:
            strings = values[row]
            if is_local[row]:
                return self._compressor.dictionary_page(strings)
            key = (row, len(strings))
            if key not in file.cached:
                file.cached[key] = self._compressor.dictionary_page(strings)
            return file.cached[key]

        try:
            self._temporary.add(file.parquet.path)
            file.parquet.write(file.group, {place: (lambda row=row: dictionary_page(row)) for place, row in DICTIONARY_ROW.items()})  # type: ignore[misc]
        except OSError as error:
            self.fail(error, file.parquet.path)
        file.group = RowGroup()

    def finish(self, file: _OpenFile, target: Path, partition: int) -> None:
        path = file.parquet.path
        try:
            file.parquet.finish()
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except OSError as error:
            self.fail(error, target)
            return
        self._temporary.discard(path)
        self.bytes += file.parquet.bytes
        self.files += 1
        self._partition_rows[partition] = self._partition_rows.get(partition, 0) + file.parquet.rows

    def drop(self, file: _OpenFile) -> None:
        file.parquet.path.unlink(missing_ok=True)
        self._temporary.discard(file.parquet.path)

    def _remove_temporary(self) -> None:
        while self._temporary:
            with suppress(OSError):
                self._temporary.pop().unlink(missing_ok=True)


assert set(DICTIONARY_ROW.values()) == set(range(len(DICTIONARY_COLUMNS)))  # noqa: S101 - every coded column has a place
