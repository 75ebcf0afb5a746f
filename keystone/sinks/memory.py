"""A sink that keeps documents in memory: what others are compared with."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from keystone.sinks.base import DONE, Answer, Document


class MemoryRows:
    """A ``RawSink``. ``documents``: by (kind, id), each with the highest revision that was sent."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], Document] = {}
        self.sent = 0  # repeats included
        self._lock = threading.Lock()

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        with self._lock:
            self.sent += len(documents)
            for document in documents:
                there = self.documents.get((document.kind, document.id))
                if there is None or there.revision < document.revision:
                    self.documents[document.kind, document.id] = document
        return [DONE] * len(documents)

    def close(self) -> None:
        """Nothing is released: who holds the sink reads what it got."""
