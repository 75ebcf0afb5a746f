"""The embedded log: segment files of one machine, one writer a partition, any number of readers, no server.

    DIR/log.json                        what the log is; written last, so a directory with it is a whole log
    DIR/control                         one row of counters a partition, mapped by everyone
    DIR/p0000/000000000012.segment      records (``keystone.kernels.log`` draws them)
    DIR/p0000/writer                    locked by the partition's writer, and holds its process id

``retention_bytes`` is the room of one partition, a ring of ``retention_bytes // segment_bytes`` segments. A segment is
dropped when its room is needed and everything in it is consumed; nothing unconsumed is ever dropped: the writer waits.
It outlives any process. After a power cut a log on a disk keeps what had reached the disk.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from keystone.clock import Clock, SystemClock
from keystone.errors import LogClosed, LogInUse, UsageError
from keystone.events import I64
from keystone.kernels import log as kernels
from keystone.log.partition import EmbeddedReader, EmbeddedWriter, Shape, writer_pid

FORMAT: Final = 1
URL_SCHEME: Final = "embedded:"
DEFAULT_FREE_BYTES: Final = 2 << 30  # /dev/shm with less (64 MB in a container) is no place for seconds of 260 MB/s
SEGMENTS_MAX: Final = 64  # of a partition; each costs its writer and readers two file descriptors
_LOOK_BYTES: Final = 16 << 20  # read at once, where a time is looked for
_CONTROL_HEAD_BYTES: Final = 4096
_DESCRIPTION = "log.json"
_CONTROL = "control"


class Directory(NamedTuple):
    """A place for a log, and one line that says which and why."""

    path: Path
    line: str


def default_directory(free_bytes_min: int = DEFAULT_FREE_BYTES, *, memory: Path = Path("/dev/shm")) -> Directory:  # noqa: S108 - chosen on purpose
    """A fresh path (not made yet) in memory where that has room, else in the temporary directory."""
    name = f"keystone-log-{os.getpid()}-{secrets.token_hex(4)}"
    free = _free_bytes(memory)
    if free >= free_bytes_min:
        return Directory(memory / name, f"log: {memory / name} (in memory, {free / 2**30:.1f} GiB free)")
    path = Path(tempfile.gettempdir()) / name
    why = f"{memory} has {free / 2**20:,.0f} MiB free, less than {free_bytes_min / 2**20:,.0f}"
    return Directory(path, f"log: {path} ({why})")


def directory_of(url: str) -> Path:
    """The directory of ``embedded:DIR``; ``UsageError`` for anything else."""
    if not url.startswith(URL_SCHEME) or not url.removeprefix(URL_SCHEME):
        raise UsageError(f"log {url!r} is not embedded:DIRECTORY, for example embedded:/var/tmp/keystone-log")
    return Path(url.removeprefix(URL_SCHEME))


def _free_bytes(path: Path) -> int:
    """Bytes free on the file system of ``path`` or its nearest existing parent; 0 where it cannot be written."""
    while not path.exists() and path != path.parent:
        path = path.parent
    if not os.access(path, os.W_OK):
        return 0
    return shutil.disk_usage(path).free


@dataclass(frozen=True, slots=True)
class PartitionStats:
    """Counters of one partition, read from shared memory: any process may ask at any time."""

    partition: int
    start_offset: int
    end_offset: int
    consumed_offset: int
    events_appended: int
    events_consumed: int
    events_processed: int
    bytes_appended: int  # of values
    last_append_ts_ms: int
    waited_ms: int  # by the writer, for room
    torn_records: int  # cut away by recoveries

    @property
    def lag_events(self) -> int:
        return max(0, self.events_appended - max(self.events_processed, self.events_consumed))


class EmbeddedLog:
    """A log in a directory. Made by ``create`` (once) and ``open`` (by everyone else)."""

    def __init__(self, shape: Shape, control: I64, clock: Clock, append_wait_max_ms: int) -> None:
        _compile()
        self.shape = shape
        self.partitions = shape.partitions
        self.directory = shape.directory
        self.append_wait_max_ms = append_wait_max_ms
        self._control = control
        self._clock = clock
        self._given: list[EmbeddedReader | EmbeddedWriter] = []
        self._closed = False

    @property
    def retention_bytes(self) -> int:
        """The room of one partition."""
        return self.shape.retention_bytes

    @property
    def log_id(self) -> str:
        """See ``Log.log_id``."""
        return f"embedded {self.shape.run:016x}"

    @property
    def url(self) -> str:
        """What ``open_url`` in another process takes."""
        return f"{URL_SCHEME}{self.directory}"

    @classmethod
    def create(
        cls,
        directory: Path | str,
        *,
        partitions: int,
        segment_bytes: int = 16 << 20,  # 16 segments of 16 MiB: 1 s of 260 MB/s a partition
        retention_bytes: int = 256 << 20,
        record_bytes_max: int = 4 << 20,  # a line of 1 MiB is still an event, and frames hold some
        append_wait_max_ms: int = 30_000,  # a reader that takes longer than this to make room is dead
        clock: Clock | None = None,
    ) -> EmbeddedLog:
        """Make a log in an empty or absent directory.

        ``UsageError`` where the sizes do not fit together or the disk; ``LogInUse`` where another run's log is.
        """
        shape = Shape(Path(directory).absolute(), secrets.randbits(62), partitions, segment_bytes, retention_bytes, min(record_bytes_max, segment_bytes // 2))
        _check_shape(shape)
        _claim(shape.directory)
        for partition in range(partitions):
            shape.folder(partition).mkdir()
        control = _map_control(shape, new=True)
        description = {"format": FORMAT, **asdict(shape)}
        del description["directory"]
        beside = shape.directory / (_DESCRIPTION + ".new")
        beside.write_text(json.dumps(description, indent=1) + "\n")
        beside.rename(shape.directory / _DESCRIPTION)
        return cls(shape, control, clock or SystemClock(), append_wait_max_ms)

    @classmethod
    def open(cls, directory: Path | str, *, partitions: int | None = None, append_wait_max_ms: int = 30_000, clock: Clock | None = None) -> EmbeddedLog:
        """The log that is in ``directory``; ``UsageError`` where there is none of ours, or it has not ``partitions``."""
        path = Path(directory).absolute()
        shape = _read_description(path)
        if partitions is not None and partitions != shape.partitions:
            raise UsageError(f"{path}: the log has {shape.partitions} partitions, not {partitions}: choose another directory, or ask for {shape.partitions}")
        return cls(shape, _map_control(shape, new=False), clock or SystemClock(), append_wait_max_ms)

    @classmethod
    def open_url(cls, url: str, **options: Any) -> EmbeddedLog:
        """``open`` by ``embedded:DIR``."""
        return cls.open(directory_of(url), **options)

    def writer(self, partition: int, *, preallocate: bool = False) -> EmbeddedWriter:
        """The partition's writer, after a check of all it retains.

        ``preallocate``: make every segment of the ring ready now. The kernel clears each page of a new file, which
        costs 10 times the append itself (0.3 us per 260 bytes): here, instead of in the first seconds of a run.

        ``LogInUse`` while another lives; ``LogCorrupt`` where records in the middle are damaged (what a crash left
        unfinished at the end is cut away, and counted in ``stats().torn_records``); ``LogFull`` where the disk is.
        """
        writer = EmbeddedWriter(self.shape, partition, self._row(partition), self._clock, self.append_wait_max_ms, preallocate=preallocate)
        self._given.append(writer)
        return writer

    def reader(self, partition: int, *, verify: bool = True) -> EmbeddedReader:
        """A reader at the start offset. ``verify``: checksum every value read (0.01 us per 260 bytes)."""
        reader = EmbeddedReader(self.shape, partition, self._row(partition), verify=verify)
        self._given.append(reader)
        return reader

    def _row(self, partition: int) -> I64:
        if self._closed:
            raise LogClosed(f"{self.directory}: the log was closed")
        if not 0 <= partition < self.partitions:
            raise UsageError(f"{self.directory}: no partition {partition}: there are 0 to {self.partitions - 1}")
        row: I64 = self._control[partition]
        return row

    def stats(self, partition: int) -> PartitionStats:
        row = self._row(partition)
        read = (
            kernels.START_OFFSET, kernels.END_OFFSET, kernels.CONSUMED_OFFSET, kernels.EVENTS_APPENDED, kernels.EVENTS_CONSUMED,
            kernels.EVENTS_PROCESSED, kernels.BYTES_APPENDED, kernels.LAST_APPEND_MS, kernels.WAITED_MS, kernels.TORN_RECORDS,
        )  # fmt: skip
        return PartitionStats(partition, *(int(kernels.read_word(row, word)) for word in read))

    def offsets_at(self, append_ts_ms: int) -> dict[int, int]:
        """Of every partition: its first record that was appended then or later; the end, where there is none. Reads everything before."""
        return {partition: self._offset_at(partition, append_ts_ms) for partition in range(self.partitions)}

    def _offset_at(self, partition: int, append_ts_ms: int) -> int:
        reader = self.reader(partition)
        try:
            while len(records := reader.poll(bytes_max=_LOOK_BYTES, wait_ms=0)):
                at = int(np.searchsorted(records.append_ts_ms, append_ts_ms))
                if at < len(records):
                    return int(records.offsets[at])
            return reader.position()
        finally:
            reader.close()

    def lag(self, partition: int) -> int:
        """Events appended to ``partition`` and not yet reported processed (or consumed) by a reader."""
        return self.stats(partition).lag_events

    def close(self) -> None:
        """Close every reader and writer this object gave. The files stay."""
        self._closed = True
        while self._given:
            self._given.pop().close()

    def remove(self) -> None:
        """Close, and delete the log's files: for runs whose log nobody wants after them."""
        self.close()
        for partition in range(self.partitions):
            shutil.rmtree(self.shape.folder(partition), ignore_errors=True)
        for name in (_DESCRIPTION, _CONTROL):
            (self.directory / name).unlink(missing_ok=True)
        if self.directory.exists() and not any(self.directory.iterdir()):
            self.directory.rmdir()


@cache
def _compile() -> None:
    kernels.warm_up()


def _check_shape(shape: Shape) -> None:
    if shape.partitions < 1:
        raise UsageError(f"log: partitions = {shape.partitions} must be at least 1")
    if shape.segment_bytes < 1 << 16 or shape.segment_bytes % mmap.PAGESIZE:
        raise UsageError(f"log: segment_bytes = {shape.segment_bytes} must be a multiple of {mmap.PAGESIZE}, and at least 65536")
    if not 2 <= shape.segments <= SEGMENTS_MAX:
        raise UsageError(
            f"log: retention_bytes = {shape.retention_bytes} makes {shape.segments} segments of segment_bytes = {shape.segment_bytes}:"
            f" choose them so that there are 2 to {SEGMENTS_MAX}"
        )
    free, most = _free_bytes(shape.directory), shape.partitions * shape.segments * shape.segment_bytes
    if free < most:
        raise UsageError(
            f"{shape.directory}: a log of {shape.partitions} partitions of {shape.segments * shape.segment_bytes / 2**20:,.0f} MiB does not fit"
            f" in the {free / 2**20:,.0f} MiB that are free: lower retention_bytes, or choose another directory"
        )


def _claim(directory: Path) -> None:
    """Make ``directory``, or see that it is empty."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = next(directory.iterdir(), None)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{directory} is not a directory: choose another") from error
    except PermissionError as error:
        raise UsageError(f"{directory} cannot be written: choose another directory") from error
    if found is None:
        return
    if (directory / _DESCRIPTION).exists():
        writers = [pid for folder in sorted(directory.glob("p[0-9]*")) if (pid := writer_pid(folder))]
        if writers:
            raise LogInUse(f"{directory} is the log of another run, being written by process {writers[0]}: choose another directory")
        raise LogInUse(f"{directory} holds the log of another run: choose another directory, or delete it")
    if (directory / _CONTROL).exists():
        raise LogInUse(f"{directory} holds the log of a run that is starting, or died starting: choose another directory, or delete it")
    raise UsageError(f"{directory} is not empty, and no log: choose another directory")


def _read_description(directory: Path) -> Shape:
    path = directory / _DESCRIPTION
    try:
        said = json.loads(path.read_text())
        found = said["format"]
        if found == FORMAT:
            return Shape(directory=directory, **{f.name: int(said[f.name]) for f in fields(Shape) if f.name != "directory"})
    except FileNotFoundError as error:
        raise UsageError(f"{directory} holds no log ({_DESCRIPTION} is not there)") from error
    except NotADirectoryError as error:
        raise UsageError(f"{directory} is not a directory") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a log's description: choose another directory, or delete it") from error
    raise UsageError(f"{path}: the log's format is {found}, this program reads {FORMAT}: choose another directory, or delete it")


def _map_control(shape: Shape, *, new: bool) -> I64:
    """The rows of all partitions, int64 (partitions, ROW_WORDS), shared with every process that maps them."""
    path = shape.directory / _CONTROL
    size_bytes = _CONTROL_HEAD_BYTES + shape.partitions * kernels.ROW_WORDS * 8
    try:
        file = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0), 0o644)
    except FileExistsError as error:
        raise LogInUse(f"{shape.directory}: another run is making a log here at this moment: choose another directory") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} is gone: the log cannot be read; delete the directory") from error
    try:
        if new:
            os.posix_fallocate(file, 0, size_bytes)
            os.pwrite(file, shape.run.to_bytes(8, "little"), 0)
        elif os.fstat(file).st_size != size_bytes or os.pread(file, 8, 0) != shape.run.to_bytes(8, "little"):
            raise UsageError(f"{path} belongs to another log, or was cut: delete the directory, or choose another")
        mapped = mmap.mmap(file, size_bytes)
    finally:
        os.close(file)
    return np.frombuffer(mapped, np.int64, offset=_CONTROL_HEAD_BYTES).reshape(shape.partitions, kernels.ROW_WORDS)
