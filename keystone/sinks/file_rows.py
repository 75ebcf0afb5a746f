"""Rows as lines of JSON in files of each kind and process, for people and for whatever tails a file. A repeat is another line with the same ``id``."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import orjson

from keystone.clock import Clock, SystemClock
from keystone.errors import SinkBusy, SinkError, UsageError
from keystone.logs import get
from keystone.sinks.base import DONE, NOT_REVISED, Answer, Document
from keystone.sinks.ndjson import LineFile

NAME_CHARS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
TURNED: Final = re.compile(r"([0-9]{17})\.ndjson")  # behind the name: year to millisecond

log = get(__name__)


class FileRows:
    """A ``RawSink``: ``DIRECTORY/KIND-PROCESS.ndjson``, a line ``{"id": ..., "revision": ..., "row": {...}}`` a document (``revision`` where it has one).

    ``process``: a name that no other process writes under; ``stem``: in place of KIND, for a sink of one kind; ``file_bytes_max``: as in
    ``RowFile``. A line is on the disk, whole, when it is acknowledged; a torn one that a dead run left is cut off. Readers take the highest
    revision of an ``id``. ``UsageError`` where a file cannot be opened.
    """

    def __init__(self, directory: Path | str, process: str, kinds: Sequence[str], *, stem: str | None = None, file_bytes_max: int = 0) -> None:
        name = "".join(sign if sign in NAME_CHARS else "_" for sign in process)
        self._files = {kind: RowFile(Path(directory) / f"{stem or kind}-{name}.ndjson", file_bytes_max) for kind in kinds}
        self._locks = {kind: threading.Lock() for kind in kinds}

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        by_kind: dict[str, list[bytes]] = {}
        for document in documents:
            by_kind.setdefault(document.kind, []).append(line_of(document))
        for kind, lines in by_kind.items():
            with self._locks[kind]:
                try:
                    self._files[kind].append(lines)
                except SinkError as error:
                    raise SinkBusy(str(error)) from error
        return [DONE] * len(documents)

    def close(self) -> None:
        """May be repeated."""
        for kind, file in self._files.items():
            with self._locks[kind]:
                file.close()


class RowFile:
    """Whole lines, on the disk when ``append`` returns: in ``NAME.ndjson`` always, so that whoever follows that name sees every line.

    A file that the next lines would make larger than ``bytes_max`` (0: without limit) becomes ``NAME.TIME.ndjson`` first, TIME being UTC and
    never one that an older file has: sorted by name, files are in the order of their lines, the one without a time last. Nothing is ever
    deleted here. A file that somebody moved, removed or emptied is begun anew. One thread at a time.
    """

    def __init__(self, path: Path, bytes_max: int, clock: Clock | None = None) -> None:
        """``UsageError`` where it cannot be opened."""
        self.path = path
        self._bytes_max, self._clock = bytes_max, clock or SystemClock()
        self._is_closed = False
        self._file: LineFile | None = self._opened()

    def append(self, lines: Sequence[bytes]) -> None:
        """All of them, or ``SinkError`` and none: the same again, later."""
        if self._is_closed:
            raise SinkError(f"{self.path} was closed")
        file = self._followed()
        if self._bytes_max and file.size_bytes and file.size_bytes + sum(map(len, lines)) > self._bytes_max:
            file = self._turned(file)
        file.write_synced(lines)

    def close(self) -> None:
        """May be repeated."""
        self._is_closed = True
        self._let_go()

    def _opened(self) -> LineFile:
        file = LineFile(self.path)
        try:
            _sync_directory(self.path.parent)  # a file whose name a power cut takes has no line
        except OSError as error:
            file.close()
            raise UsageError(f"{self.path.parent} cannot be written: {error.strerror}; choose another directory") from error
        return file

    def _followed(self) -> LineFile:
        """The file that has our name now."""
        if self._file is not None and not self._file.is_in_place():
            self._let_go()
        if self._file is None:
            try:
                self._file = self._opened()
            except UsageError as error:
                raise SinkError(str(error)) from error
        return self._file

    def _turned(self, full: LineFile) -> LineFile:
        """The next file. Where the full one cannot be given its name, it takes more: lines matter, its size does not."""
        try:
            self.path.rename(self._next_path())
        except OSError as error:
            log.warning("a file of rows is full and cannot be renamed: it grows on", file=self.path.name, reason=error.strerror)
            return full
        self._let_go()
        return self._followed()

    def _next_path(self) -> Path:
        older = {int(match[1]) for path in self.path.parent.iterdir() if (match := TURNED.fullmatch(path.name.removeprefix(f"{self.path.stem}.")))}
        stamp = int(datetime.fromtimestamp(self._clock.now_ms() / 1_000, UTC).strftime("%Y%m%d%H%M%S%f")[:17])
        return self.path.with_name(f"{self.path.stem}.{max(stamp, 1 + max(older, default=0))}.ndjson")

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class BytesOut(Protocol):
    """What bytes are written to."""

    def write(self, text: bytes, /) -> object: ...
    def flush(self) -> object: ...


class ConsoleRows:
    """A ``RawSink``: the same lines to standard output, with their ``kind``, for a look. Whoever reads no more ends nothing but this."""

    def __init__(self, out: BytesOut | None = None) -> None:
        self._out: BytesOut = sys.stdout.buffer if out is None else out
        self._lock = threading.Lock()

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        text = b"".join(b'{"kind":"%b",' % document.kind.encode() + line_of(document)[1:] for document in documents)
        with self._lock:
            try:
                self._out.write(text)
                self._out.flush()
            except (OSError, ValueError) as error:
                raise SinkBusy(f"standard output takes nothing: {error}") from error
        return [DONE] * len(documents)

    def close(self) -> None:
        """Standard output is not ours."""


def line_of(document: Document) -> bytes:
    """With its line feed; what a row holds ends no line."""
    revision = b"" if document.revision == NOT_REVISED else b',"revision":%d' % document.revision
    return b'{"id":' + orjson.dumps(document.id) + revision + b',"row":' + document.body.replace(b"\n", b" ") + b"}\n"
