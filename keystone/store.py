"""Where durable state lives: objects by name in a directory, in a bucket, or (for tests) in memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from keystone.buckets import s3_store
from keystone.errors import StoreUnavailable, UsageError
from keystone.store_objects import NAME, ObjectStore, checked_name, look_at, memory_store

Buffer = bytes | bytearray | memoryview  # one-dimensional, of bytes

UNFINISHED: Final = ".unfinished-"  # how files begin that are being written, or were when their writer was killed
WRITE_PARTS_MAX: Final = 512  # buffers of one system call; Linux takes 1,024
DIRECT_BYTES_MIN: Final = 1 << 20  # of an object that goes around the page cache: below, waiting for the disk costs more than copying
DIRECT_BUFFER_BYTES: Final = 4 << 20  # written at once then
DIRECT_ALIGNMENT: Final = 4096  # of offset, size and memory: a block of nearly every disk; where one wants more, the cache it is


class Store(Protocol):
    """Objects by name ("a/b/c"). Every method may raise ``StoreUnavailable`` (again, later) or ``UsageError`` (never as it is)."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write an object, whole or not at all; replaces one of that name. The parts lie one after the other in it."""

    def put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Compare and set: write an object where there is none of that name. False where there is one already.

        No two callers may write the same bytes under one name: they tell whose an object is where an answer was lost.
        """

    def get(self, name: str) -> memoryview:
        """The bytes of an object. Raises ``KeyError`` where there is none."""

    def get_range(self, name: str, start: int, size: int) -> memoryview:
        """Bytes [start, start + size), fewer where the object ends before. Raises ``KeyError`` where there is none."""

    def names(self, prefix: str) -> list[str]:
        """The names that begin with ``prefix``, sorted. Unfinished writes are never among them."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; missing ones are no error."""


def open_store(url: str, *, fsync: bool = True) -> Store:
    """The store at a directory (a path, or file:///...; made where there is none), at s3://bucket/prefix, or in memory.

    Credentials, region and endpoint of a bucket come from the AWS_* variables and files (``buckets``). ``memory://name`` is one store for the whole
    process. ``fsync``: of directories; see ``DirectoryStore``.
    """
    if "://" not in url:
        return DirectoryStore(url, fsync=fsync)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return DirectoryStore(unquote(parts.path), fsync=fsync)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: name bucket and prefix only; credentials come from AWS_* variables")
    prefix = parts.path.strip("/")
    if prefix and not NAME.fullmatch(prefix):
        raise UsageError(f"{url}: the prefix may hold letters, digits, '.', '_', '-' and '/' only")
    if parts.scheme == "memory":
        return ObjectStore(memory_store(parts.netloc), prefix, url)
    if parts.scheme == "s3" and parts.netloc:
        return ObjectStore(s3_store(parts.netloc), prefix, url)
    raise UsageError(f"{url}: no store: name a directory, or s3://bucket/prefix")


def open_bucket(url: str) -> ObjectStore:
    """The same as ``open_store``, of s3://bucket/prefix only: it uploads files as well."""
    store = open_store(url)
    if not isinstance(store, ObjectStore):
        raise UsageError(f"{url}: no bucket: write it as s3://bucket/prefix")
    return store


def look_at_bucket(url: str, *, makes_once: bool) -> None:
    """Where ``url`` is one of a bucket: see that it can be used (``store_objects.look_at``). Raises ``UsageError`` that says what to change."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        open_store(url)  # what is no such place is refused there
        look_at(parts.netloc, parts.path.strip("/"), url, makes_once=makes_once)


class DirectoryStore:
    """Files under a directory, for any number of processes of one machine (or of a file system that they share).

    An object is written beside its place under a name that ``names`` hides, and then linked or renamed: readers see all of it
    or nothing. What a killed writer leaves is removed by the next write into that directory: whoever writes holds a lock on
    its file, so what nobody locks nobody writes.

    ``fsync``: an object is on the disk when a write returns (70 ms more for 128 MB here, nothing in /dev/shm). Without,
    killed processes still lose nothing, but a power cut may cost the objects of the last half minute, or leave them cut short,
    which checksums find. An epoch may be among them, so that two owners could come to hold the same one.
    """

    def __init__(self, path: str | Path, *, fsync: bool = True) -> None:
        self.root = Path(path).absolute()
        self._fsync = fsync
        self._direct = _DirectWrites()
        self._numbers = itertools.count()
        self._process = secrets.token_hex(8)  # process ids repeat, in containers at once
        with self._translated(""):
            self.root.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._write(name, parts, is_new=False)

    def put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        return self._write(name, parts, is_new=True)

    def get(self, name: str) -> memoryview:
        return self._read(name, 0, None)

    def get_range(self, name: str, start: int, size: int) -> memoryview:
        return self._read(name, start, size)

    def names(self, prefix: str) -> list[str]:
        folder = prefix.rpartition("/")[0]
        with self._translated(prefix):
            if not self.root.is_dir():
                raise StoreUnavailable(f"{self.root}: the directory is gone: mount or restore it")
            found = (f"{folder}/{name}" if folder else name for name in self._walk(self.root / folder))
            return sorted(name for name in found if name.startswith(prefix))

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._translated(name), contextlib.suppress(FileNotFoundError):
                self._place(name).unlink()

    def _walk(self, folder: Path) -> Iterator[str]:
        for path, folders, files in os.walk(folder, onerror=_raise_unless_gone):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(path).relative_to(folder)
            yield from ((inside / name).as_posix() for name in files if not name.startswith("."))

    def _place(self, name: str) -> Path:
        return self.root / checked_name(name)

    def _read(self, name: str, start: int, size: int | None) -> memoryview:
        place = self._place(name)
        with self._translated(name):
            try:
                file = place.open("rb", buffering=0)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise KeyError(name) from None
            with file:
                there = max(0, os.fstat(file.fileno()).st_size - start)
                content = np.empty(there if size is None else min(size, there), np.uint8).data  # not zeroed first
                file.seek(start)
                filled = 0
                while filled < len(content) and (count := file.readinto(content[filled:])):
                    filled += count
                return content[:filled]

    def _write(self, name: str, parts: Sequence[Buffer], *, is_new: bool) -> bool:
        place = self._place(name)
        with self._translated(name):
            if is_new and place.exists():
                return False
            while True:
                draft = place.parent / f"{UNFINISHED}{self._process}-{next(self._numbers)}"
                try:
                    return self._write_draft(draft, place, parts, is_new=is_new)
                except FileNotFoundError:  # no folder yet; or another's sweep came between making the draft and locking it
                    self._make_folder(place.parent)
                finally:
                    with contextlib.suppress(OSError):
                        draft.unlink()

    def _write_draft(self, draft: Path, place: Path, parts: Sequence[Buffer], *, is_new: bool) -> bool:
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            _write_all(file, self._direct.write(file, parts))
            if self._fsync:
                os.fsync(file)
            if is_new:
                try:
                    os.link(draft, place)
                except FileExistsError:
                    return False
            else:
                draft.rename(place)
        finally:
            os.close(file)
        if self._fsync:
            _fsync_folder(place.parent)
        _sweep(place.parent)
        return True

    def _make_folder(self, folder: Path) -> None:
        if not self.root.is_dir():  # an unmounted disk must not be filled in below its mount point
            raise StoreUnavailable(f"{self.root}: the directory is gone: mount or restore it")
        missing = [folder, *folder.parents]
        missing = [path for path in missing[: missing.index(self.root)] if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            if self._fsync:
                _fsync_folder(path.parent)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Errors of the system as ours, in one line."""
        try:
            yield
        except OSError as error:
            line = f"{self.root / name}: {error.strerror or error}"
            if error.errno in _FULL:
                raise StoreUnavailable(f"{line}: free some space") from error
            if error.errno in _NEVER:
                raise UsageError(f"{line}: choose a directory that can be written to") from error
            raise StoreUnavailable(line) from error


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NEVER: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})


def _raise_unless_gone(error: OSError) -> None:
    """What cannot be listed must not look empty."""
    if not isinstance(error, FileNotFoundError):
        raise error


class _DirectWrites:
    """Writes around the page cache, which has no use for a checkpoint: nobody reads it unless somebody dies.

    160 MB cost 15 ms of CPU so; through the cache 40 ms where its pages were in use before, and 400 ms where they are new
    to a virtual machine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffer: mmap.mmap | None = None

    def write(self, file: int, parts: Sequence[Buffer]) -> list[memoryview]:
        """Write whole blocks of what ``parts`` hold; what is left is the caller's. All of it, where it is little or the file system refuses."""
        left = [memoryview(part) for part in parts if len(part)]
        flag = getattr(os, "O_DIRECT", 0)
        if not flag or sum(len(part) for part in left) < DIRECT_BYTES_MIN or not self._lock.acquire(blocking=False):
            return left
        try:
            flags = fcntl.fcntl(file, fcntl.F_GETFL)
            try:
                fcntl.fcntl(file, fcntl.F_SETFL, flags | flag)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return left
            try:
                return self._write_blocks(file, left)
            finally:
                fcntl.fcntl(file, fcntl.F_SETFL, flags)
        finally:
            self._lock.release()

    def _write_blocks(self, file: int, left: list[memoryview]) -> list[memoryview]:
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, DIRECT_BUFFER_BYTES)
        buffer = memoryview(self._buffer)
        while True:
            filled, behind = _fill(buffer, left)
            whole = filled // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT
            if not whole:
                return left
            try:
                written = os.write(file, buffer[:whole])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return left
            if written < filled:  # the end of everything, or a disk that has no room for more
                behind = _without(left, written)
                if written % DIRECT_ALIGNMENT:
                    return behind
            left = behind


def _fill(buffer: memoryview, parts: Sequence[memoryview]) -> tuple[int, list[memoryview]]:
    """Copy what fits of the parts into the buffer; its bytes, and what did not fit."""
    at = 0
    for place, part in enumerate(parts):
        fitting = part[: len(buffer) - at]
        np.copyto(np.frombuffer(buffer, np.uint8)[at : at + len(fitting)], np.frombuffer(fitting, np.uint8))  # other threads run meanwhile
        at += len(fitting)
        if len(fitting) < len(part):
            return at, [part[len(fitting) :], *parts[place + 1 :]]
    return at, []


def _without(parts: Sequence[memoryview], size: int) -> list[memoryview]:
    """The parts behind their first ``size`` bytes."""
    for place, part in enumerate(parts):
        if size < len(part):
            return [part[size:], *parts[place + 1 :]]
        size -= len(part)
    return []


def _write_all(file: int, parts: Sequence[Buffer]) -> None:
    """Every byte, without joining the parts."""
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        written = os.writev(file, left[:WRITE_PARTS_MAX])
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def _fsync_folder(folder: Path) -> None:
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left: files under an unfinished name that nobody has locked."""
    with contextlib.suppress(OSError):  # the next write sweeps again
        for draft in folder.glob(f"{UNFINISHED}*"):
            _remove_unlocked(draft)


def _remove_unlocked(draft: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or its writer lives
        file = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()
        finally:
            os.close(file)
