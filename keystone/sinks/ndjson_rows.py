"""Rows as lines of JSON in one file a kind, for people and for tests. A repeat is another line with the same ``id``: readers drop it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import orjson

from keystone.errors import SinkBusy, SinkError
from keystone.sinks.base import DONE, KINDS, NOT_REVISED, Answer, Document
from keystone.sinks.ndjson import LineFile


class NdjsonRows:
    """A ``RawSink``: ``DIRECTORY/KIND.ndjson``, a line ``{"id": ..., "revision": ..., "row": {...}}`` a document (``revision`` where it has one).

    ``UsageError`` where the directory cannot be used. A line is there, whole, when it is acknowledged.
    """

    def __init__(self, directory: Path | str) -> None:
        self._files = {kind: LineFile(Path(directory) / f"{kind}.ndjson") for kind in KINDS}
        self._lock = threading.Lock()

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        by_kind: dict[str, list[bytes]] = {}
        for document in documents:
            by_kind.setdefault(document.kind, []).append(_line(document))
        with self._lock:
            for kind, lines in by_kind.items():
                try:
                    self._files[kind].write_lines(lines)
                except SinkError as error:
                    raise SinkBusy(str(error)) from error
        return [DONE] * len(documents)

    def close(self) -> None:
        """May be repeated."""
        with self._lock:
            for file in self._files.values():
                file.close()


def _line(document: Document) -> bytes:
    revision = b"" if document.revision == NOT_REVISED else b',"revision":%d' % document.revision
    return b'{"id":' + orjson.dumps(document.id) + revision + b',"row":' + document.body + b"}\n"
