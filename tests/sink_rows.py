"""Rows for sinks that tests make up, and receivers that misbehave as told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from keystone.sinks.base import NOT_REVISED, Document

DAY = 20_000
WAIT_S_MAX = 60.0


@dataclass(frozen=True)
class NumberedRows:
    """Rows ``first`` to ``first + rows`` of a kind; their ids are their numbers."""

    kind: str
    first: int
    rows: int
    size_bytes: int = 100
    revision: int = NOT_REVISED
    broken: int = -1  # the number of a row that cannot be made JSON

    def documents(self, start: int, stop: int) -> list[Document]:
        numbers = range(self.first + start, self.first + stop)
        if self.broken in numbers:
            raise ValueError("this row cannot be said")
        return [Document(self.kind, str(number), DAY, orjson.dumps({"n": number, "revision": self.revision}), self.revision) for number in numbers]


def until(claim: Callable[[], bool], *, limit_s: float = WAIT_S_MAX) -> None:
    deadline_s = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


def numbers_of(documents: Sequence[Document]) -> list[int]:
    return [int(document.id) for document in documents]
