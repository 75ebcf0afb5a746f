"""One segment file of the embedded log: made, mapped, locked, used again.

Locks decide whether a file may be used again: a reader holds a shared ``flock`` on every segment it has views into,
the writer asks for the exclusive one before it overwrites an old segment. The kernel drops a dead process's locks, so
nothing needs to be registered, and no reader can see bytes change under its hands.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from crc32c import crc32c

from keystone.errors import LogCorrupt, LogFull
from keystone.events import I64, U8
from keystone.kernels.log import SEGMENT_HEAD, TAIL, clear_words

MAGIC: Final = int.from_bytes(b"KSsegm01", "little")
SUFFIX: Final = ".segment"
_HEAD_WORDS: Final = SEGMENT_HEAD // 8


@dataclass(frozen=True, slots=True)
class SegmentHead:
    """What the first 64 bytes of a segment say. ``events_before`` and ``last_append_ms``: of all earlier segments."""

    run: int
    partition: int
    number: int
    first_offset: int
    events_before: int
    last_append_ms: int

    def write(self, array: U8) -> None:
        """Into ``array``, with an empty place for the first record behind it."""
        clear_words(array, SEGMENT_HEAD, 1)
        words = np.array([MAGIC, self.run, self.partition, self.number, self.first_offset, self.events_before, self.last_append_ms, 0], np.int64)
        words[-1] = crc32c(words[:-1].tobytes())
        array[:SEGMENT_HEAD].view(np.int64)[:] = words

    @classmethod
    def read(cls, array: U8) -> SegmentHead | None:
        """None where there is no whole head."""
        words: I64 = array[:SEGMENT_HEAD].view(np.int64)
        if words[0] != MAGIC or words[-1] != crc32c(words[: _HEAD_WORDS - 1].tobytes()):
            return None
        return cls(*(int(word) for word in words[1:-1]))


def segment_path(folder: Path, number: int) -> Path:
    """Of segment ``number``; below 0, of a spare: a file made ready before it is needed."""
    return folder / (f"{number:012d}{SUFFIX}" if number >= 0 else f"spare{-number:03d}{SUFFIX}")


def remove_spares(folder: Path) -> None:
    """Delete what an earlier writer made ready and did not use."""
    for path in folder.glob("spare*" + SUFFIX):
        path.unlink()


def segment_numbers(folder: Path) -> list[int]:
    """Numbers of the segment files in ``folder``, ascending; spares are not among them."""
    return sorted(int(path.name.removesuffix(SUFFIX)) for path in folder.glob("[0-9]*" + SUFFIX))


class WritableSegment:
    """A segment as its writer holds it: mapped whole, every page there already, so that a store can never fail."""

    def __init__(self, folder: Path, number: int, size_bytes: int, *, new: bool) -> None:
        self._folder = folder
        self.number = number
        self.first_offset = 0
        path = segment_path(folder, number)
        self._file = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0), 0o644)
        try:
            allocate(self._file, size_bytes, path)
            self._map = mmap.mmap(self._file, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(self._file)
            if new:
                path.unlink(missing_ok=True)
            raise
        self.array: U8 = np.frombuffer(self._map, np.uint8)

    @property
    def room(self) -> int:
        """Where records must end; the tail is for the end mark and for readers' PADDING."""
        return self.array.size - TAIL

    @property
    def path(self) -> Path:
        return segment_path(self._folder, self.number)

    def read_only(self) -> U8:
        view = self.array.view()
        view.flags.writeable = False
        return view

    def begin(self, head: SegmentHead) -> None:
        """Write ``head``: the segment is empty and belongs to ``head.number``."""
        self.first_offset = head.first_offset
        head.write(self.array)

    def use_again(self, head: SegmentHead) -> bool:
        """Make this consumed or spare segment the one ``head`` describes; False, and nothing done, where a reader still maps it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        old = self.path
        self.begin(head)
        self.number = head.number
        old.rename(self.path)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return True

    def close(self, *, durable: bool = False) -> None:
        if durable:
            self._map.flush()
        os.close(self._file)
        # The mapping goes with its last view: closing it under a running append would be a crash.

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()


def allocate(file: int, size_bytes: int, path: Path) -> None:
    """Give ``file`` all its bytes now: a full disk is then an error here, not a SIGBUS at a store."""
    try:
        os.posix_fallocate(file, 0, size_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise LogFull(f"{path}: no room for a segment of {size_bytes:,} bytes: the file system is full") from error
        raise


class MappedSegment:
    """A segment as a reader holds it: read-only, and locked (shared) while views into it are in use."""

    def __init__(self, file: int, size_bytes: int) -> None:
        self._file = file
        self._map = mmap.mmap(file, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        self.array: U8 = np.frombuffer(self._map, np.uint8)

    def lock(self) -> bool:
        """False where the writer is taking the file for a new segment at this moment."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)  # spelled out: the mapping's own copy of the descriptor would keep the lock

    @property
    def is_unlinked(self) -> bool:
        return os.fstat(self._file).st_nlink == 0

    def close(self) -> None:
        self.unlock()
        os.close(self._file)


class SegmentCache:
    """The mappings of one reader, by file: a segment used again is mapped already (mapping anew costs 0.1 ms a MiB)."""

    def __init__(self, folder: Path, size_bytes: int, mappings_max: int) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._mappings_max = mappings_max
        self._by_inode: dict[int, MappedSegment] = {}

    def take(self, number: int) -> tuple[MappedSegment, SegmentHead] | None:
        """Segment ``number``, locked; None where the file is gone, or is another segment now."""
        path = segment_path(self._folder, number)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        segment = self._mapped(file, path)
        if not segment.lock():
            return None
        head = SegmentHead.read(segment.array)
        if head is not None and head.number == number:
            return segment, head
        segment.unlock()
        return None

    def _mapped(self, file: int, path: Path) -> MappedSegment:
        status = os.fstat(file)
        known = self._by_inode.get(status.st_ino)
        if known is not None:
            os.close(file)
            return known
        if status.st_size < self._size_bytes:
            os.close(file)
            raise LogCorrupt(f"{path}: {status.st_size:,} bytes long, not {self._size_bytes:,}: the file was cut")
        for inode in [i for i, segment in self._by_inode.items() if segment.is_unlinked or len(self._by_inode) >= self._mappings_max]:
            self._by_inode.pop(inode).close()
        segment = MappedSegment(file, self._size_bytes)
        self._by_inode[status.st_ino] = segment
        return segment

    def close(self) -> None:
        while self._by_inode:
            self._by_inode.popitem()[1].close()
