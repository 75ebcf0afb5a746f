"""The thread that compresses pages and writes files of the lake, behind a bounded queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from keystone.errors import SinkError
from keystone.sinks.lake_files import Compressor, DictionaryPage, ParquetFile, RowGroup
from keystone.sinks.lake_pages import GroupValues, PageEncoder, Pages
from keystone.sinks.lake_schema import DICTIONARY_ROW


@dataclass(slots=True)
class OpenFile:
    """A file being written. Only the writing thread touches it after it was made."""

    parquet: ParquetFile
    group: RowGroup = field(default_factory=RowGroup)
    cached: dict[tuple[int, int], DictionaryPage] = field(default_factory=dict)


class WritingThread:
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

    def add(self, file: OpenFile, pages: Pages) -> None:
        file.group.add(pages.rows, pages.out, pages.table, self._compressor)
        self._encoder.release(pages)

    def end_group(self, file: OpenFile, values: GroupValues) -> None:
        def dictionary_page(place: int) -> DictionaryPage:
            row = DICTIONARY_ROW.get(place)
            if row is None:
                return self._compressor.integer_dictionary_page(values.integers)
            strings = values.strings[row]
            if values.is_local[row]:
                return self._compressor.dictionary_page(strings)
            key = (row, len(strings))
            if key not in file.cached:
                file.cached[key] = self._compressor.dictionary_page(strings)
            return file.cached[key]

        try:
            self._temporary.add(file.parquet.path)
            file.parquet.write(file.group, dictionary_page)
        except OSError as error:
            self.fail(error, file.parquet.path)
        file.group = RowGroup()

    def finish(self, file: OpenFile, target: Path, partition: int) -> None:
        path = file.parquet.path
        try:
            file.parquet.finish()
            target.parent.mkdir(parents=True, exist_ok=True)
            target = _free_name(target)
            path.replace(target)
        except OSError as error:
            self.fail(error, target)
            return
        self._temporary.discard(path)
        self.bytes += file.parquet.bytes
        self.files += 1
        self._partition_rows[partition] = self._partition_rows.get(partition, 0) + file.parquet.rows

    def drop(self, file: OpenFile) -> None:
        file.parquet.path.unlink(missing_ok=True)
        self._temporary.discard(file.parquet.path)

    def _remove_temporary(self) -> None:
        while self._temporary:
            with suppress(OSError):
                self._temporary.pop().unlink(missing_ok=True)


def _free_name(target: Path) -> Path:
    """``target``, or the next name after it that no file has: a topic made anew begins again at offset 0, and nothing is overwritten."""
    number, free = 1, target
    while free.is_file():
        number += 1
        free = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return free
