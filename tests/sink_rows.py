"""Rows for sinks that tests make up, and receivers that misbehave as told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from keystone.errors import SinkBusy
from keystone.sinks.base import NOT_REVISED, Answer, Document, Outcome, RawSink

DAY = 20_000
FIELD = {"alerts": "seq", "sessions": "events", "cohorts": "events", "events": "seq", "dead_letters": "offset"}  # that every sink takes
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
        return [Document(self.kind, str(number), DAY, orjson.dumps({FIELD[self.kind]: number}), self.revision) for number in numbers]


def until(claim: Callable[[], bool], *, limit_s: float = WAIT_S_MAX) -> None:
    deadline_s = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


class Moody:
    """A ``RawSink`` before another, that fails by a seed: ``share`` of its batches, in every way there is. ``refuses``: these ids, always."""

    def __init__(self, inner: RawSink, seed: int = 1, share: float = 0.5, refuses: frozenset[str] = frozenset()) -> None:
        self.inner, self.share, self.refuses = inner, share, refuses
        self.calls = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        with self._lock:
            self.calls += 1
            mood = self._random.choice(["busy", "lost", "some", "defect"]) if self._random.random() < self.share else "well"
        if mood == "busy":
            raise SinkBusy("not now")
        if mood == "defect":
            raise ZeroDivisionError("as a sink must not, but may")
        passed = [d for number, d in enumerate(documents) if d.id not in self.refuses and not (mood == "some" and number % 2)]
        told = dict(zip((d.id for d in passed), self.inner.send_batch(passed) if passed else [], strict=True))
        if mood == "lost":
            raise SinkBusy("the answer was lost")
        return [told.get(d.id) or Answer(Outcome.REFUSED if d.id in self.refuses else Outcome.AGAIN, "made up") for d in documents]

    def close(self) -> None:
        self.inner.close()


class Gate:
    """A ``RawSink`` before another, in which everybody waits while ``is_open`` is not set."""

    def __init__(self, inner: RawSink) -> None:
        self.inner = inner
        self.is_open = threading.Event()
        self.waiting = 0

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        self.waiting += 1
        self.is_open.wait(120)
        return self.inner.send_batch(documents)

    def close(self) -> None:
        self.is_open.set()
        self.inner.close()
