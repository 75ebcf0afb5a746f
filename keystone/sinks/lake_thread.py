"""The thread that compresses pages and writes files of the lake, behind a bounded queue."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keystone.errors import SinkBusy, SinkError
from keystone.logs import get
from keystone.sinks.lake_files import Compressor, DictionaryPage, ParquetFile, RowGroup
from keystone.sinks.lake_pages import GroupValues, PageEncoder, Pages
from keystone.sinks.lake_schema import DICTIONARY_ROW
from keystone.sinks.session_file import sync

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
ROOM_EVERY_S: Final = 0.5  # between two tries where there is none
IDLE_LOOK_S: Final = 0.5

log = get(__name__)


@dataclass(slots=True)
class OpenFile:
    """A file being written. Only the writing thread touches it after it was made."""

    parquet: ParquetFile
    group: RowGroup = field(default_factory=RowGroup)
    cached: dict[tuple[int, int], DictionaryPage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is in place. ``day`` counts from the epoch."""

    path: Path
    day: int
    rows: int
    bytes: int


class Cut:
    """Everything of one partition up to the end of a step: ``files`` once ``wait`` has returned True."""

    def __init__(self) -> None:
        self.files: list[WrittenFile] = []
        self._is_in_place = threading.Event()

    def complete(self, files: list[WrittenFile]) -> None:
        self.files = files
        self._is_in_place.set()

    def wait(self, wait_s: float) -> bool:
        """Whether all files are in place by then. Where the lake failed they never are: ask it."""
        return self._is_in_place.wait(wait_s)


class WritingThread:
    """Runs what is put into its bounded queue, in order. Holds the first error, and does nothing more after it."""

    def __init__(self, queue_bytes_max: int, encoder: PageEncoder, *, is_patient: bool = False, on_file: Callable[[Path, int], None] | None = None) -> None:
        """``is_patient``: where the disk is full or files are too many, wait until they are not, instead of failing.

        ``on_file``: told of each file of a cut, and its size, as it is in place; such files need not outlive a power cut.
        """
        self._on_file = on_file
        self.bytes = self.files = 0
        self.is_waiting = False  # for room
        self._is_patient = is_patient
        self.cpu_seconds = self.wait_seconds = 0.0
        self.queued_bytes = 0
        self.is_stopped = False
        self._queue_bytes_max = queue_bytes_max
        self._encoder = encoder
        self._compressor = Compressor()
        self._partition_rows: dict[int, int] = {}
        self._uncut: dict[int, list[WrittenFile]] = {}  # in place since the last cut, where cuts are made
        self._temporary: set[Path] = set()
        self._error: SinkError | None = None
        self._work: deque[tuple[int, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="lake", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        """Whether more can be put without waiting for long."""
        return not self.is_waiting and self.queued_bytes < self._queue_bytes_max

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
        """Wait until all that was put is done; raise if it failed, or ``SinkBusy`` where there is no room for it now."""
        with self._changed:
            while not self._changed.wait_for(lambda: not self._work and not self._is_busy, IDLE_LOOK_S):
                if self.is_waiting:
                    raise SinkBusy("the lake has no room: free some, or end")
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
        self._uncut.pop(partition, None)

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

    def patiently(self, do: Callable[[], None]) -> None:
        """Do it, again and again while the system has no room for it. Raises ``OSError`` for anything else, and when it is to stop."""
        while True:
            try:
                do()
            except OSError as error:
                if not self._is_patient or self._is_stopping or error.errno not in NO_ROOM:
                    raise
                if not self.is_waiting:
                    log.warning("the lake has no room: waiting until there is some", reason=f"{error.filename}: {error.strerror}")
                self.is_waiting = True
                time.sleep(ROOM_EVERY_S)
                continue
            if self.is_waiting:
                log.warning("the lake has room again")
            self.is_waiting = False
            return

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

    def finish(self, file: OpenFile, target: Path, partition: int, day: int, *, is_cut: bool) -> None:
        path = file.parquet.path
        try:
            file.parquet.finish()
            self.patiently(lambda: target.parent.mkdir(parents=True, exist_ok=True))
            target = _free_name(target)
            is_synced = is_cut and self._on_file is None
            if is_synced:  # a checkpoint will name it, and outlive a power cut; 10-100 ms of waiting, of this thread only
                sync(path)
            self.patiently(lambda: _replace(path, target))
            if is_synced:
                sync(target.parent)
        except OSError as error:
            self.fail(error, target)
            return
        self._temporary.discard(path)
        self.bytes += file.parquet.bytes
        self.files += 1
        self._partition_rows[partition] = self._partition_rows.get(partition, 0) + file.parquet.rows
        if is_cut:
            self._uncut.setdefault(partition, []).append(WrittenFile(target, day, file.parquet.rows, file.parquet.bytes))
            if self._on_file is not None:
                self._on_file(target, file.parquet.bytes)

    def cut(self, partition: int, cut: Cut) -> None:
        """Everything that was put before is done: the files in place since the last cut are this one's."""
        cut.complete(self._uncut.pop(partition, []))

    def drop(self, file: OpenFile) -> None:
        file.parquet.path.unlink(missing_ok=True)
        self._temporary.discard(file.parquet.path)

    def _remove_temporary(self) -> None:
        while self._temporary:
            with suppress(OSError):
                self._temporary.pop().unlink(missing_ok=True)


def _replace(path: Path, target: Path) -> None:
    path.replace(target)


def _free_name(target: Path) -> Path:
    """``target``, or the next name after it that no file has: a topic made anew begins again at offset 0, and nothing is overwritten."""
    number, free = 1, target
    while free.is_file():
        number += 1
        free = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return free
