"""A lake in a bucket, from a session actor's side: files are written to a spool on this machine, and uploaded from there.

Written first and uploaded then, because a bucket may be slow or away for minutes while the stream goes on: the spool takes what comes
meanwhile, up to ``lake.spool_bytes_max``. An upload begins as soon as a file is whole, several at once; a checkpoint names a file only
when it is in the bucket, and only when that checkpoint is durable does the file leave the spool. So the spool holds nothing that anybody
needs after its process died: whoever takes over writes the same rows again, under other names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from keystone.errors import StoreUnavailable, UsageError
from keystone.logs import get
from keystone.segments import DataFile

UPLOADS_AT_ONCE: Final = 4  # files; each in parts of 16 MB, four at once: 256 MB of memory at most
SPOOL, NEW, LOCK = "spool-", "new-", "lock"

log = get(__name__)


class Objects(Protocol):
    """What is asked of a store (``store_objects.ObjectStore``)."""

    def put_file(self, name: str, path: Path) -> None: ...


class Spool:
    """A directory of one process. Those of processes that are gone are removed by the next one that opens its own."""

    def __init__(self, root: Path) -> None:
        """Raises ``UsageError`` where none can be made."""
        try:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            making = root / f"{NEW}{secrets.token_hex(8)}"
            making.mkdir()
            self._lock = os.open(making / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._place = making.rename(root / making.name.replace(NEW, SPOOL, 1))  # only now may others judge it
            self.directory = self._place / "lake"
            self.directory.mkdir()
        except OSError as error:
            raise UsageError(f"{root}: no files can wait there for their upload: {error.strerror}: correct lake.home_dir") from error

    def close(self) -> None:
        """Remove it. May be repeated."""
        if self._lock >= 0:
            shutil.rmtree(self._place, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _sweep(root: Path) -> None:
    for lock in root.glob(f"{SPOOL}*/{LOCK}"):
        with contextlib.suppress(OSError):  # it is held, or just gone
            file = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(file)


class LakeBucket:
    """Uploads files of a spool under their own relative names. Any thread may call it."""

    def __init__(self, objects: Objects, url: str, spool: Path, spool_bytes_max: int) -> None:
        self.uploaded_files = self.uploaded_bytes = 0
        self._objects, self._url, self._spool, self._bytes_max = objects, url, spool, spool_bytes_max
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}  # of files in the spool
        self._uploads: dict[str, Future[None]] = {}
        self._is_away = self._is_full = False
        self._pool = ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="upload")

    @property
    def held_bytes(self) -> int:
        """Of whole files in the spool."""
        return sum(tuple(self._sizes.values()))

    def begin(self, path: Path, size: int) -> None:
        """A file is whole: upload it, in the background."""
        name = path.relative_to(self._spool).as_posix()
        with self._lock:
            self._sizes[name] = size
            self._start(name)

    def ship(self, files: Iterable[DataFile]) -> None:
        """All of these are in the bucket when this returns. Raises ``StoreUnavailable`` for the same again, later: what is there by then stays."""
        with self._lock:
            waiting = []
            for file in files:
                self._sizes[file.path] = file.bytes
                waiting.append((file, self._uploads.get(file.path) or self._start(file.path)))
        error = next((found for file, upload in waiting if (found := self._outcome(file.path, upload)) is not None), None)
        if error is None:
            self._is_away = self._told(is_now=False, was=self._is_away, on="", off=f"{self._url} takes files again")
            return
        self._is_away = self._told(is_now=True, was=self._is_away, on="files of the lake wait for their upload", off="", reason=str(error))
        raise StoreUnavailable(str(error)) from error

    def forget(self, files: Iterable[DataFile]) -> None:
        """A durable checkpoint names these: the bucket's are the only ones from now on."""
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                (self._spool / file.path).unlink()
            with self._lock:
                self._sizes.pop(file.path, None)
                self._uploads.pop(file.path, None)

    def has_room(self) -> bool:
        """False while more waits in the spool than it may hold: then the log is the place for what comes."""
        is_full = self.held_bytes >= self._bytes_max
        on = "the spool is full of files that wait for their upload: nothing more is read until there is room"
        self._is_full = self._told(is_now=is_full, was=self._is_full, on=on, off="the spool has room again", reason=f"{self._url}: lake.spool_bytes_max")
        return not is_full

    def close(self) -> None:
        """Begin no more uploads. May be repeated."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, name: str) -> Future[None]:
        upload = self._uploads[name] = self._pool.submit(self._upload, name)
        return upload

    def _upload(self, name: str) -> None:
        self._objects.put_file(name, self._spool / name)
        with self._lock:
            self.uploaded_files += 1
            self.uploaded_bytes += self._sizes.get(name, 0)

    def _outcome(self, name: str, upload: Future[None]) -> Exception | None:
        """None where the file is there. What only a person mends is waited for, too: keys and policies change under a run that goes on."""
        try:
            upload.result()
        except (StoreUnavailable, UsageError) as error:
            with self._lock:
                self._uploads.pop(name, None)  # the next call begins it again
            return error
        return None

    @staticmethod
    def _told(*, is_now: bool, was: bool, on: str, off: str, reason: str = "") -> bool:
        """The same as ``is_now``; one warning where that is news."""
        if is_now and not was:
            log.warning(on, reason=reason)
        elif was and not is_now:
            log.warning(off)
        return is_now
