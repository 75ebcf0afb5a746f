"""Rows as lines of JSON in files, one a kind and process, for people and for whatever tails a file. A repeat is another line with the same ``id``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import orjson

from keystone.errors import SinkBusy, SinkError
from keystone.sinks.base import DONE, NOT_REVISED, Answer, Document
from keystone.sinks.ndjson import LineFile

NAME_CHARS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


class FileRows:
    """A ``RawSink``: ``DIRECTORY/KIND-PROCESS.ndjson``, a line ``{"id": ..., "revision": ..., "row": {...}}`` a document (``revision`` where it has one).

    ``process``: a name that no other process writes under; ``stem``: in place of KIND, for a sink of one kind. A line is on the disk, whole,
    when it is acknowledged; a torn one that a dead run left is cut off. Readers take the highest revision of an ``id``. ``UsageError`` where a
    file cannot be opened.
    """

    def __init__(self, directory: Path | str, process: str, kinds: Sequence[str], *, stem: str | None = None) -> None:
        name = "".join(sign if sign in NAME_CHARS else "_" for sign in process)
        self._files = {kind: LineFile(Path(directory) / f"{stem or kind}-{name}.ndjson") for kind in kinds}
        self._locks = {kind: threading.Lock() for kind in kinds}

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        by_kind: dict[str, list[bytes]] = {}
        for document in documents:
            by_kind.setdefault(document.kind, []).append(line_of(document))
        for kind, lines in by_kind.items():
            with self._locks[kind]:
                try:
                    self._files[kind].write_lines(lines)
                    self._files[kind].sync()
                except SinkError as error:
                    raise SinkBusy(str(error)) from error
        return [DONE] * len(documents)

    def close(self) -> None:
        """May be repeated."""
        for kind, file in self._files.items():
            with self._locks[kind]:
                file.close()


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
