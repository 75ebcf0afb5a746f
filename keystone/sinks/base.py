"""The contract of a sink of rows, and what is handed over.

Rows come as ``Rows``: columns of one kind, made JSON only in a thread of the sink. Each becomes a ``Document`` whose id is the same
whenever the same row is said again, so that saying anything twice is harmless. Whoever writes a sink writes a ``RawSink``: one call
that sends a batch and tells of each document what became of it. ``keystone.sinks.shell.BufferedSink`` puts around it what all sinks
need: bounded queues, batches, retries, a circuit, spill to disk, drops that are counted, an orderly end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

ALERTS: Final = "alerts"
SESSIONS: Final = "sessions"
COHORTS: Final = "cohorts"
EVENTS: Final = "events"
DEAD_LETTERS: Final = "dead_letters"
#: Kinds of rows. Those that ``sinks.may_drop`` does not name are kept: where nothing more can be held, the caller waits.
KINDS: Final = (ALERTS, SESSIONS, COHORTS, EVENTS, DEAD_LETTERS)

NOT_REVISED: Final = -1
DAY_MS: Final = 86_400_000
BELIEVED_DAYS: Final = 2  # SPEC 5: a device's clock that far from log time is broken

#: Reasons of drops; only kinds that are not kept are ever dropped, the oldest first.
DROP_QUEUE_FULL: Final = "queue_full"
DROP_SPILL_FULL: Final = "spill_full"
DROP_TOO_OLD: Final = "too_old"


@dataclass(frozen=True, slots=True)
class Document:
    """One row, ready to send.

    ``id``: at most 64 characters, equal for repeats of the same row. ``day``: days since the epoch, of the event (``event_day``).
    ``body``: one JSON object in UTF-8 without a line feed. ``revision``: of rows that are said again with other values, the number that
    rises; a lower one never replaces a higher. ``NOT_REVISED``: the row never changes.
    """

    kind: str
    id: str
    day: int
    body: bytes
    revision: int = NOT_REVISED


class Outcome(Enum):
    DONE = "done"  # it is there, now or since before
    AGAIN = "again"  # the same again, later
    REFUSED = "refused"  # never as it is


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one document; ``reason`` in the receiver's words, unless it is done."""

    outcome: Outcome
    reason: str = ""


DONE: Final = Answer(Outcome.DONE)


@dataclass(frozen=True, slots=True)
class Refused:
    """A document that will never be taken, and why. ``body`` and ``id`` are empty where the row could not be made JSON."""

    kind: str
    id: str
    reason: str
    body: bytes


OnRefused = Callable[[Sequence[Refused]], None]


class Rows(Protocol):
    """Rows of one kind, held as whatever is cheapest; read-only from when they are offered. Another thread encodes them."""

    @property
    def kind(self) -> str: ...

    @property
    def rows(self) -> int:
        """How many, more than none."""

    @property
    def size_bytes(self) -> int:
        """Memory that they hold, about."""

    def documents(self, start: int, stop: int) -> list[Document]:
        """Rows ``start`` to ``stop`` as documents, one each, in order."""


class RawSink(Protocol):
    """Where documents go. Several threads call it at once, each with one kind."""

    def send_batch(self, documents: Sequence[Document]) -> list[Answer]:
        """Deliver; one answer a document, in order. Returns or raises within a limit of its own.

        ``SinkBusy``: nothing is known to be taken, all of it again (``wait_s``: not before). ``SinkRefused``: none of it, ever.
        """

    def close(self) -> None:
        """Release everything; calls under way may fail. May be repeated."""


class Sink(Protocol):
    """What a session actor sees of a sink. One thread calls it; no call waits for the receiver."""

    def offer(self, rows: Sequence[Rows]) -> None:
        """Hand over what a step gave, all of it or (``SinkBusy``) nothing. Always taken after ``has_room()``."""

    def has_room(self) -> bool:
        """False: take no new records before it is True again. Kinds that may be dropped never make it False."""

    def mark(self) -> int:
        """Names everything offered so far, and has it brought to safety soon."""

    def is_kept(self, mark: int) -> bool:
        """Everything before ``mark`` is acknowledged, refused and told, dropped and counted, or on disk: a checkpoint may forget it."""

    def flush(self, limit_s: float) -> bool:
        """Wait until the receiver has everything; False where that takes longer."""

    def close(self, limit_s: float) -> int:
        """Flush, spill the rest, end, within about ``limit_s``. Returns how many rows are neither delivered nor on disk. May be repeated."""

    def status(self) -> dict[str, Any]:
        """Counters and state, for reports."""


def event_day(ts_ms: int, append_ts_ms: int) -> int:
    """Days since the epoch of ``ts_ms`` (device clock) within 2 days of the append time, else of that (SPEC 5): broken clocks make no index."""
    is_believed = abs(ts_ms - append_ts_ms) <= BELIEVED_DAYS * DAY_MS
    return (ts_ms if is_believed else append_ts_ms) // DAY_MS
