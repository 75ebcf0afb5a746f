"""The lake: every accepted event, once, in Parquet files under ``event_date=YYYY-MM-DD/``.

A file holds one partition's events of one day and is named by the offsets it spans:
``event_date=2026-09-21/p00003-00000000000000001200-00000000000000009812.parquet``. It is written in a hidden directory
beside the lake and renamed into place when it is complete: a reader sees whole files or none. (Inside the lake even a
hidden file would not do: Polars, asked for a directory, takes every file in it and refuses all for one of another kind.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from keystone.config import LakeConfig
from keystone.errors import UsageError
from keystone.events import I64, EventBatch
from keystone.kernels import lake_rows
from keystone.sinks.lake_files import ParquetFile
from keystone.sinks.lake_pages import DictionaryValues, GroupCodes, PageEncoder
from keystone.sinks.lake_stage import Stage, batch_text_bytes, selected_text_bytes
from keystone.sinks.lake_thread import Cut, OpenFile, WritingThread

DIRECT_ROWS_MIN: Final = 2048  # a batch of so many rows is a page of its own, uncopied; smaller ones are collected
PAGE_ROWS_MAX: Final = 4096  # collected rows
PAGE_TEXT_BYTES_MAX: Final = 4 << 20  # and bytes of their strings
DAY_MS: Final = 86_400_000
EVENTS_DIR: Final = "data/events"  # of a lake that is a table
LOG_REACH_MS: Final = 2 * DAY_MS  # a device clock further from the append time does not choose the folder
FILE_REACH_MS: Final = 30 * DAY_MS  # in a plain file: from its first accepted event


def file_name(partition: int, first_offset: int, last_offset: int) -> str:
    return f"p{partition:05d}-{first_offset:020d}-{last_offset:020d}.parquet"


def table_file_name(partition: int, first_offset: int, last_offset: int, epoch: int, number: int, *, log_number: int = 0) -> str:
    """Of a table's file: no two owners of a partition, and no two files of one owner, have the same. ``log_number``: see ``Segment``."""
    log = f"l{log_number}-" if log_number else ""
    return f"p{partition:05d}-{first_offset:020d}-{last_offset:020d}-{log}e{epoch:08d}-{number:06d}.parquet"


def offsets_of(path: Path) -> tuple[int, int]:
    """The first and last offset that a file's name gives."""
    _, first, last = path.stem.split("-")[:3]
    return int(first), int(last)


def folder_name(day: int) -> str:
    """``day`` counts from the epoch."""
    return f"event_date={np.datetime64(day, 'D')}"


@dataclass(slots=True)
class _Stream:
    """What the caller's side knows of the open file of one partition and day."""

    partition: int
    day: int
    file: OpenFile
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

    With ``is_table`` the files are a table's: in ``data/events/``, named also by the ``epoch`` of their partition's owner
    (``own``), in place but in no snapshot yet; ``cut`` ends them, whatever their age (no reader sees them before), and says which
    there are. ``on_file`` is told of each, by another thread, where the directory is only the first place that they are in.

    Opening sweeps the unfinished files that a dead run left in ``partitions``. Errors of the file system are raised by the
    next call as one ``SinkError``, after which no unfinished file of ours is left and every further call raises it again.
    """

    def __init__(
        self,
        directory: Path | str,
        config: LakeConfig,
        *,
        partitions: Iterable[int] = (),
        has_log_time: bool = True,
        anchor_ts_ms: int | None = None,
        is_table: bool = False,
        on_file: Callable[[Path, int], None] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._is_table = is_table
        self._owners: dict[int, tuple[int, int]] = {}  # epoch and log number, by partition
        self.anchor_ts_ms = anchor_ts_ms
        self._rows: dict[int, int] = {}  # appended, by partition
        self._config = config
        self._has_log_time = has_log_time
        self._encoder = PageEncoder(has_log_time=has_log_time)
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._known: set[int] = set()
        self._dictionaries: DictionaryValues | None = None
        self._days: I64 = np.zeros(0, np.int64)
        self._caller_cpu_seconds = 0.0
        self._names = 0
        try:
            self._writing = _writing_directory(self.directory)
        except OSError as error:
            raise UsageError(f"the lake cannot be made at {self.directory}: {error.strerror}; choose another directory") from error
        for partition in partitions:
            self._open_partition(partition)
        self._thread = WritingThread(config.queue_bytes_max, self._encoder, is_patient=is_table, on_file=on_file)

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
        """Take every row of ``batch``, which may be overwritten afterwards. Waits while the queue is full.

        Other ``dictionaries`` than the last time replace those: every open file begins another row group.
        """
        started = time.thread_time()
        self._thread.check()
        if batch.rows:
            if dictionaries is not self._dictionaries:
                self._use(dictionaries)
            for day, index in self._by_day(batch):
                if index is None:
                    self._append_batch(self._stream(day, batch, 0, dictionaries), batch)
                else:
                    self._append_rows(self._stream(day, batch, int(index[0]), dictionaries), batch, index)
            self._rows[batch.partition] = self._rows.get(batch.partition, 0) + batch.rows
        self._caller_cpu_seconds += time.thread_time() - started

    def end_step(self, now_ms: int) -> None:
        """A record boundary: close the files that are large or old enough. Call it also when nothing was appended."""
        started = time.thread_time()
        self._thread.check()
        for stream in list(self._streams.values()):
            if stream.opened_ms is None:
                stream.opened_ms = now_ms
            is_old = not self._is_table and now_ms - stream.opened_ms >= self._config.file_age_max_ms
            if is_old or stream.file_rows >= self._config.file_rows_max or stream.file_bytes >= self._config.file_bytes_max:
                self._close_file(stream)
        self._caller_cpu_seconds += time.thread_time() - started

    def own(self, partition: int, epoch: int, log_number: int) -> None:
        """From now on files of ``partition`` are written for its owner of that ``epoch``. What a dead process of ours left unfinished goes."""
        self._owners[partition] = epoch, log_number
        self._open_partition(partition)

    def cut(self, partition: int) -> Cut:
        """End the files of a partition, between steps; where they are once they are in place. Waits only while the queue is full."""
        self._thread.check()
        for stream in [stream for stream in self._streams.values() if stream.partition == partition]:
            self._close_file(stream)
        cut = Cut()
        self._thread.put(0, lambda: self._thread.cut(partition, cut))
        return cut

    def has_room(self) -> bool:
        """False while the queue is full or the disk is: then the log is the place for what comes."""
        return self._thread.has_room()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        self._thread.check()

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

    def discard_partition(self, partition: int, *, from_offset: int = 0) -> None:
        """Remove every file of a partition that will be written again from ``from_offset`` on: those in place and those being written.

        Files of lower offsets stay. One that has both stays too: whoever began at ``from_offset`` did not write it.
        """
        for key in [key for key in self._streams if key[0] == partition]:
            stream = self._streams.pop(key)
            self._thread.put(0, lambda file=stream.file: self._thread.drop(file))  # type: ignore[misc]
        self._thread.wait_until_idle()
        for path in self.directory.glob(f"event_date=*/p{partition:05d}-*.parquet"):
            if offsets_of(path)[0] >= from_offset:
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

    def _by_day(self, batch: EventBatch) -> list[tuple[int, I64 | None]]:
        """The days of a batch and which rows belong to each; None: all of them."""
        rows = batch.rows
        if self._days.size < rows:
            self._days = np.zeros(rows, np.int64)
        if self.anchor_ts_ms is None:
            self.anchor_ts_ms = int(batch.ts[0])
        reach = LOG_REACH_MS if self._has_log_time else FILE_REACH_MS
        low, high = lake_rows.day_range(batch.ts, batch.append_ts_ms, rows, self.anchor_ts_ms, reach, int(self._has_log_time), self._days)
        if low == high:
            return [(int(low), None)]
        days = self._days[:rows]
        return [(int(day), np.flatnonzero(days == day)) for day in np.unique(days)]

    def _append_batch(self, stream: _Stream, batch: EventBatch) -> None:
        stream.last_offset = int(batch.offset[batch.rows - 1])
        stream.file_rows += batch.rows
        size = batch_text_bytes(batch)
        if batch.rows >= DIRECT_ROWS_MIN or size >= PAGE_TEXT_BYTES_MAX:
            self._end_page(stream)
            self._put_page(stream, batch)
            return
        self._make_room(stream, batch.rows, size)
        stream.stage.append(batch)

    def _append_rows(self, stream: _Stream, batch: EventBatch, index: I64) -> None:
        stream.last_offset = int(batch.offset[index[-1]])
        stream.file_rows += index.size
        size = selected_text_bytes(batch, index)
        self._make_room(stream, index.size, size)
        stream.stage.append_rows(batch, index, size)

    def _make_room(self, stream: _Stream, rows: int, size: int) -> None:
        if stream.stage.rows + rows > PAGE_ROWS_MAX or stream.stage.text_bytes + size > PAGE_TEXT_BYTES_MAX:
            self._end_page(stream)

    def _stream(self, day: int, batch: EventBatch, row: int, dictionaries: DictionaryValues) -> _Stream:
        """The open file of the batch's partition and ``day``; a new one begins with ``row`` of the batch."""
        stream = self._streams.get((batch.partition, day))
        if stream is None:
            return self._open_file(day, batch, row, dictionaries)
        return stream

    def _use(self, dictionaries: DictionaryValues) -> None:
        """Other codes: another row group, of every file, so that replaced dictionaries are not kept for a silent partition."""
        self._dictionaries = dictionaries
        for stream in self._streams.values():
            self._end_page(stream)
            self._end_group(stream)
            self._thread.put(0, stream.file.cached.clear)
            stream.codes = GroupCodes(dictionaries)

    def _open_file(self, day: int, batch: EventBatch, row: int, dictionaries: DictionaryValues) -> _Stream:
        if batch.partition not in self._known:
            self._open_partition(batch.partition)
        self._names += 1
        first = int(batch.offset[row])
        path = self._writing / f"p{batch.partition:05d}-{np.datetime64(day, 'D')}-{first:020d}-{os.getpid()}-{self._names}.tmp"
        file = OpenFile(ParquetFile(path, self._thread.patiently))
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
        file, values = stream.file, stream.codes.end()
        stream.group_rows = stream.group_bytes = 0
        self._thread.put(0, lambda: self._thread.end_group(file, values))

    def _close_file(self, stream: _Stream) -> None:
        self._end_page(stream)
        self._end_group(stream)
        del self._streams[stream.partition, stream.day]
        target = self._target(stream)
        self._thread.put(0, lambda: self._thread.finish(stream.file, target, stream.partition, stream.day, is_cut=self._is_table))

    def _target(self, stream: _Stream) -> Path:
        span = stream.partition, stream.first_offset, stream.last_offset
        if not self._is_table:
            return self.directory / folder_name(stream.day) / file_name(*span)
        self._names += 1
        epoch, log_number = self._owners.get(stream.partition, (0, 0))
        return self.directory / EVENTS_DIR / folder_name(stream.day) / table_file_name(*span, epoch, self._names, log_number=log_number)


def _writing_directory(directory: Path) -> Path:
    """Make the lake, and a directory for its unfinished files on the same file system. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    writing = directory.absolute().with_name(f".{directory.absolute().name}.writing")
    if directory.stat().st_dev != directory.absolute().parent.stat().st_dev:  # a mount point: no rename across
        writing = directory / ".writing"
    try:
        writing.mkdir()
    except FileExistsError:  # exist_ok would raise it too where another writer, being done, removes the directory at this moment
        if writing.is_file():
            raise
    return writing
