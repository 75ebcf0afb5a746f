"""Documents on disk, for a receiver that is away: files in place whole, each document under a checksum, read again after a restart.

A file ``KIND-NUMBER.spill`` is a head (``KSP1``, how many documents, CRC-32C of these 8 bytes), then as many frames: length and CRC-32C
(4 bytes each, little-endian) of ``id NUL day NUL revision NUL body``. It is written under another name, synced and renamed: what is half
written has no such name and is removed at the next start. Small files become one in the same way. What a disk damages later is noticed: whole
frames are used, the rest is told and counted, the file kept as ``.damaged``. A file that cannot be read now is asked for again, and never
removed unread.

One process uses a directory at a time. Siblings of the same sink that nobody uses any more (a dead actor's) hand their files over to whoever opens one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from crc32c import crc32c

from keystone.errors import SinkError, UsageError
from keystone.logs import get
from keystone.sinks.base import KINDS, Document
from keystone.sinks.lanes import Segment

LOCK: Final = "in-use"
LOCK_WAIT_S: Final = 2.0  # a sibling that adopts files holds the lock for ms
FRAME: Final = struct.Struct("<II")
MAGIC: Final = b"KSP1"
HEAD: Final = struct.Struct("<4sII")
READS_MAX: Final = 5  # of a file that the disk does not give; then it is set aside
NUMBER: Final = re.compile(r"-([0-9]{12})\.")  # of files set aside as well: none is ever replaced
NAME: Final = re.compile(rf"({'|'.join(KINDS)})-([0-9]{{12}})\.spill")

log = get(__name__)


class Spill:
    """The files of one sink, named ``owner``. One thread writes and deletes; several read."""

    def __init__(self, directory: Path | str, owner: str = "") -> None:
        """``UsageError`` where it cannot be used, or another process uses it."""
        self.directory = Path(directory)
        self._damaged: dict[int, str] = {}  # number of a file -> what is wrong with it
        self._unread: Counter[int] = Counter()  # number of a file -> how often it could not be read
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked_soon(self.directory)
            if self._lock is None:
                raise UsageError(f"{self.directory} is in use by another run: choose another directory")
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, owner.encode(), 0)
            for left in self.directory.glob("*.part"):
                left.unlink()  # never promised to anyone
            self._next = 1 + max((int(match[1]) for path in self.directory.iterdir() if (match := NUMBER.search(path.name))), default=0)
            self._adopt(owner)
        except OSError as error:
            raise UsageError(f"{self.directory} cannot be used: {error.strerror}; choose another directory") from error

    def found(self) -> Iterator[tuple[str, Segment]]:
        """Files of an earlier life, by number: kind, and what is in them."""
        for kind, number, path in _listed(self.directory):
            documents = _announced(path)
            if documents is None:
                self._set_aside(path, "its head cannot be read")
            else:
                yield kind, Segment(number, documents, path.stat().st_size)

    def write(self, kind: str, documents: Sequence[Document]) -> Segment:
        """On the disk when this returns. ``SinkError`` where it cannot be, and nothing is left."""
        path = self._path(kind, self._next)
        try:
            size = self._put(path, documents)
            self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise SinkError(f"{self.directory} cannot be written: {error.strerror}; free room there") from error
        self._next += 1
        return Segment(self._next - 1, len(documents), size)

    def merge(self, kind: str, segments: Sequence[Segment]) -> Segment:
        """One file of what is pending of these, in their order, in place of the last of them; then the others are removed.

        Whoever dies in between leaves some of it twice, and loses nothing. ``SinkError`` where one is not whole or the disk does not take it: all of
        them are as they were.
        """
        documents: list[Document] = []
        for segment in segments:
            found = self.read(kind, segment)
            if segment.number in self._damaged:
                raise SinkError(f"{self._path(kind, segment.number)} is damaged: it is not joined with others")
            documents += [found[place] for place in sorted(found.keys() - segment.settled)]
        number = segments[-1].number
        try:
            merged = Segment(number, len(documents), self._put(self._path(kind, number), documents))
        except OSError as error:
            raise SinkError(f"{self.directory} cannot be written: {error.strerror}; free room there") from error
        try:
            self._sync()  # a power cut may not take the new name and leave the old ones removed
        except OSError as error:
            log.warning("a directory of the spill is not synced: files stay that are sent again", reason=error.strerror)
            return merged
        for segment in segments[:-1]:
            self.delete(kind, segment)
        return merged

    def read(self, kind: str, segment: Segment) -> dict[int, Document]:
        """What of it is whole, by place. A file that is damaged is told and set aside in ``delete``: what it lacks is lost.

        ``SinkError`` where the disk does not give it: again, later; after ``READS_MAX`` times it counts as damaged.
        """
        path = self._path(kind, segment.number)
        try:
            text = path.read_bytes()
        except OSError as error:
            self._unread[segment.number] += 1
            if self._unread[segment.number] < READS_MAX and not isinstance(error, FileNotFoundError):
                raise SinkError(f"{path} cannot be read: {error.strerror}; it is tried again") from error
            self._damaged[segment.number] = f"it cannot be read: {error.strerror}"
            return {}
        documents, places, end = _parse(kind, text)
        if len(documents) != segment.documents or places != segment.documents or end != len(text) or not _is_head(text, places):
            self._damaged[segment.number] = f"{max(segment.documents, places) - len(documents)} of {segment.documents} documents cannot be read"
        return {place: document for place, document in documents.items() if place < segment.documents}

    def delete(self, kind: str, segment: Segment) -> None:
        """What was whole of it is delivered. A file that stays is sent again after the next start, which changes nothing."""
        path = self._path(kind, segment.number)
        try:
            self._unread.pop(segment.number, None)
            if why := self._damaged.pop(segment.number, ""):
                self._set_aside(path, why)
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a file of the spill cannot be removed", number=segment.number, reason=error.strerror)

    def close(self) -> None:
        """May be repeated."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _put(self, path: Path, documents: Sequence[Document]) -> int:
        """A file in place, whole, whatever was there before; its bytes. ``OSError``: what was there is there."""
        part = path.with_suffix(".part")
        text = b"".join((_head(len(documents)), *map(_frame, documents)))
        try:
            with part.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        return len(text)

    def _path(self, kind: str, number: int) -> Path:
        return self.directory / f"{kind}-{number:012d}.spill"

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _set_aside(self, path: Path, why: str) -> None:
        log.error("a file of the spill is damaged and set aside", file=path.name, reason=why)
        if path.exists():
            path.replace(path.with_suffix(".damaged"))

    def _adopt(self, owner: str) -> None:
        """Files of siblings of the same owner that no process uses become ours."""
        for sibling in sorted(self.directory.parent.iterdir()):
            if sibling == self.directory or not (sibling / LOCK).exists() or (lock := _locked(sibling)) is None:
                continue
            try:
                if os.pread(lock, 1_024, 0).decode("utf-8", "replace") != owner:
                    continue
                for kind, _, path in _listed(sibling):
                    path.replace(self._path(kind, self._next))
                    self._next += 1
            finally:
                os.close(lock)


def _locked(directory: Path) -> int | None:
    """The descriptor that holds the directory; None where another process does. The kernel lets go of a dead one's."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _locked_soon(directory: Path) -> int | None:
    until_s = time.monotonic() + LOCK_WAIT_S
    while (lock := _locked(directory)) is None and time.monotonic() < until_s:
        time.sleep(0.02)
    return lock


def _listed(directory: Path) -> list[tuple[str, int, Path]]:
    """Kind, number and path of every file, by number."""
    matches = ((NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted(((match[1], int(match[2]), path) for match, path in matches if match), key=lambda found: found[1])


def _announced(path: Path) -> int | None:
    """How many documents a file has: as its head says, or, where that is damaged, as many as can be found in it; None for none."""
    try:
        with path.open("rb") as file:
            text = file.read(HEAD.size)
            if len(text) == HEAD.size and text == _head(HEAD.unpack(text)[1]):
                return int(HEAD.unpack(text)[1])
            text += file.read()
    except OSError:
        return None
    return _parse("", text)[1] or None


def _head(documents: int) -> bytes:
    said = MAGIC + documents.to_bytes(4, "little")
    return said + crc32c(said).to_bytes(4, "little")


def _is_head(text: bytes, documents: int) -> bool:
    return text[: HEAD.size] == _head(documents)


def _frame(document: Document) -> bytes:
    payload = b"\0".join((document.id.encode(), b"%d" % document.day, b"%d" % document.revision, document.body))
    return FRAME.pack(len(payload), crc32c(payload)) + payload


def _parse(kind: str, text: bytes) -> tuple[dict[int, Document], int, int]:
    """Whole documents by place, how many places there are, and where reading ended. Behind a damaged length nothing can be found any more."""
    documents: dict[int, Document] = {}
    at, place = HEAD.size, 0
    while at + FRAME.size <= len(text):
        size, checksum = FRAME.unpack_from(text, at)
        end = at + FRAME.size + size
        if end > len(text):
            break
        payload = text[at + FRAME.size : end]
        if size and crc32c(payload) == checksum:  # nothing at all has the checksum 0, as blocks of zeros say
            name, day, revision, body = payload.split(b"\0", 3)
            documents[place] = Document(kind, name.decode(), int(day), body, int(revision))
        at, place = end, place + 1
    return documents, place, at
