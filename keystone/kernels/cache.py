"""Machine code of kernels, kept on disk between runs, and never trusted.

What a user may rely on:

- Code compiled for other sources, versions or processors is never run: the directory's name is a hash over all of them.
  (numba's own cache looks at the file of the kernel only, and returns old results when a callee elsewhere changes.)
- A truncated, altered or misnamed entry is noticed by its checksum before anything of it is read, and compiled anew.
- Of several processes that start cold, one compiles each kernel; the others wait for it and load.
- Where the directory cannot be written (read-only install, full disk), entries go to a private temporary directory;
  where that fails too, they are not kept. Either is said in one line, and nothing else changes.

The directory: ``KEYSTONE_CACHE_DIR``, else ``keystone`` in ``XDG_CACHE_HOME``, else ``~/.cache/keystone``. It may be
deleted at any time. An entry is a pickle: whoever can write there can run code as this user, as with Python's own caches.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import llvmlite
import llvmlite.binding
import numba
import numpy as np

MAGIC = b"keystone kernel 1\n"
CHECKSUM_BYTES = hashlib.sha256().digest_size
CACHES_KEPT = 4  # directories of other sources that stay, newest first; a few MB each
CACHE_AGE_S_MIN = 3600  # younger ones stay in any case: another version may be compiling beside this one
LOCK_WAIT_S_MAX = 600.0  # all kernels compile in about 60 s; whoever waited this long compiles for itself
LOCK_POLL_S = 0.02
NUMBA_NAMES_IGNORED = frozenset({"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_DEBUG_CACHE"})  # change no machine code

log = logging.getLogger("keystone.kernels")


def source_digest(sources: Iterable[Path], env: Mapping[str, str]) -> str | None:
    """Hash of everything that machine code depends on: sources, versions, processor, ``NUMBA_*``. None without sources."""
    paths = sorted(sources)
    if not paths:
        return None
    processor = f"{llvmlite.binding.get_host_cpu_name()} {llvmlite.binding.get_host_cpu_features().flatten()}"
    switches = sorted(f"{name}={value}" for name, value in env.items() if name.startswith("NUMBA_") and name not in NUMBA_NAMES_IGNORED)
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version, sys.platform)
    digest = hashlib.sha256("\n".join((*versions, processor, *switches)).encode())
    for path in paths:
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def cache_places(digest: str | None, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Directories for the entries of one digest, the preferred one first, the private temporary one last."""
    if digest is None:
        return ()
    if chosen := env.get("KEYSTONE_CACHE_DIR"):
        home = Path(chosen)
    else:
        home = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or tempfile.gettempdir()) / ".cache") / "keystone"
    return (home.absolute() / digest, Path(tempfile.gettempdir()) / f"keystone-{os.geteuid()}" / digest)


class KernelStore:
    """Checksummed entries in the first of ``places`` that can be written; reading looks into each.

    ``is_current`` says whether the sources are still those that ``places`` are named for: somebody may edit them between
    their hashing and their compiling. ``compiled`` and ``loaded`` count what this process had to compile and could load.
    Safe for threads and processes.
    """

    def __init__(self, places: tuple[Path, ...], is_current: Callable[[], bool] = lambda: True) -> None:
        self.places = places
        self.is_current = is_current
        self.compiled = 0
        self.loaded = 0
        self._depth = 0  # how often this process holds the lock
        self._lock_file: int | None = None
        self._guard = threading.Lock()
        self._told: set[str] = set()

    # --- entries --------------------------------------------------------------------------------------------------
    def read(self, entry: str) -> bytes | None:
        """Content of ``entry``, or None where there is none that is whole. A damaged one is removed."""
        for place in self.places:
            try:
                raw = (place / entry).read_bytes() if self._is_trusted(place) else None
            except OSError:
                continue
            if raw is None:
                continue
            head = len(MAGIC) + CHECKSUM_BYTES
            if raw.startswith(MAGIC) and raw[len(MAGIC) : head] == _checksum(entry, raw[head:]):
                return raw[head:]
            self.drop(entry, f"its checksum does not match ({len(raw)} bytes)")
        return None

    def write(self, entry: str, content: bytes) -> None:
        """Keep ``content``. Readers see all of it or nothing; where it cannot be kept, that is logged, once a reason."""
        if not self.is_current():
            self._tell("sources of kernels changed since this process started: what it compiles is not kept")
            return
        raw = MAGIC + _checksum(entry, content) + content
        for place in self.places:
            beside = place / f"{entry}.{uuid.uuid4().hex[:12]}.tmp"
            try:
                self._make(place)
                beside.write_bytes(raw)
                beside.replace(place / entry)
            except OSError as error:
                with contextlib.suppress(OSError):
                    beside.unlink()
                self._tell(f"kernel cache {place} cannot be written ({error.strerror}): set KEYSTONE_CACHE_DIR to a directory that can")
            else:
                return
        self._tell("compiled kernels are not kept: each process compiles them again")

    def drop(self, entry: str, reason: str) -> None:
        """Forget ``entry``, which cannot be used."""
        self._tell(f"kernel cache: {entry} is damaged, {reason}: compiling it again")
        for place in self.places:
            with contextlib.suppress(OSError):
                (place / entry).unlink()

    def forget(self, stem: str) -> None:
        """Remove every entry whose name starts with ``stem``."""
        for place in self.places:
            for path in place.glob(f"{stem}-*"):
                with contextlib.suppress(OSError):
                    path.unlink()

    # --- one compiles, the others wait ----------------------------------------------------------------------------
    def lock(self) -> None:
        """Hold the lock of this cache until ``unlock``; nests within a process. Gives up waiting after LOCK_WAIT_S_MAX.

        Where there is no directory to lock in, it does nothing: work is done twice then, never wrongly.
        """
        with self._guard:
            self._depth += 1
            if self._depth == 1:
                self._lock_file = self._acquire()

    def unlock(self) -> None:
        with self._guard:
            self._depth -= 1
            if self._depth == 0 and self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def _acquire(self) -> int | None:
        for place in self.places:
            try:
                self._make(place)
                lock_file = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                continue
            if self._wait(lock_file, place):
                return lock_file
            os.close(lock_file)
            return None
        return None

    def _wait(self, lock_file: int, place: Path) -> bool:
        deadline = time.monotonic() + LOCK_WAIT_S_MAX
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                    self._tell(f"kernel cache {place} cannot be locked ({error.strerror}): processes may compile the same kernel twice")
                    return False
                self._tell("waiting for another process that compiles kernels", logging.INFO)
                time.sleep(LOCK_POLL_S)
            else:
                return True
        self._tell(f"waited {LOCK_WAIT_S_MAX:.0f} s for the lock of {place}: compiling without it")
        return False

    # --- the directory as a whole ---------------------------------------------------------------------------------
    def is_complete(self) -> bool:
        """True where every kernel was in the cache once (entries may have been damaged since)."""
        return any(self._is_trusted(place) and (place / "complete").is_file() for place in self.places)

    def complete(self) -> None:
        """Say that every kernel is in the cache, and remove the directories of sources long gone."""
        if not self.is_current():
            return
        for place in self.places:
            try:
                self._make(place)
                (place / "complete").touch(mode=0o600)
                os.utime(place)
            except OSError:
                continue
            _sweep(place)
            return

    def _make(self, place: Path) -> None:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_trusted(place):
            raise PermissionError(errno.EPERM, "belongs to someone else, or others may write there", str(place))

    def _is_trusted(self, place: Path) -> bool:
        """The temporary directory is open to all: there, directories must be ours alone. Others are the user's choice."""
        if place != self.places[-1] or len(self.places) == 1:
            return True
        try:
            states = [os.lstat(place.parent), os.lstat(place)]
        except OSError:
            return False
        return all(state.st_uid == os.geteuid() and state.st_mode & 0o170022 == 0o040000 for state in states)

    def _tell(self, line: str, level: int = logging.WARNING) -> None:
        if line not in self._told:
            self._told.add(line)
            log.log(level, "%s", line)


def _checksum(entry: str, content: bytes) -> bytes:
    return hashlib.sha256(entry.encode() + b"\0" + content).digest()


def _sweep(place: Path) -> None:
    """Remove all but the newest directories beside ``place``; those of other programs are told by their names."""
    aged = []
    with contextlib.suppress(OSError):
        for other in place.parent.iterdir():
            if other != place and len(other.name) == len(place.name) and set(other.name) <= set("0123456789abcdef"):
                aged.append((other.stat().st_mtime, other))
    for mtime, other in sorted(aged, reverse=True)[CACHES_KEPT:]:
        if time.time() - mtime > CACHE_AGE_S_MIN:
            shutil.rmtree(other, ignore_errors=True)
