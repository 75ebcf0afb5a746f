"""What a sink holds of one kind of rows: not yet JSON, ready, to be sent again, on its way, and on disk."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from keystone.sinks.base import Document, Rows

HELD_BYTES: Final = 400  # of Python objects around one document, by sys.getsizeof: 88 + 72 + 81 for the id + 33, and its places in queues

SMALL_FILES_MAX: Final = (
    32  # of the spill, of a kind; then some become one. A row is written again twice at 600 kB/s, and rarely at less: 4 MiB an 0.5 minute at most
)


@dataclass(slots=True, eq=False)
class Held:
    """A document in memory. ``offer``: by which it came. ``segment``: the file of the spill that has it too, 0 for none; ``place``: where in it."""

    document: Document
    offer: int
    since_ms: int
    segment: int = 0
    place: int = 0
    attempts: int = 0
    is_settled: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.document.body) + HELD_BYTES


@dataclass(slots=True)
class Offered:
    """Rows that are not JSON yet, from ``at`` on."""

    offer: int
    rows: Rows
    since_ms: int
    at: int = 0

    @property
    def left(self) -> int:
        return self.rows.rows - self.at


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows of one offer, for whoever encodes them. ``size_bytes``: what they are counted as until then."""

    offer: int
    rows: Rows
    since_ms: int
    start: int
    stop: int
    size_bytes: int


@dataclass(slots=True)
class Segment:
    """A file of the spill. ``settled``: places of its documents for which nothing is owed any more. ``is_loaded``: the others are in memory.

    ``is_single``: it is not joined with others (again).
    """

    number: int
    documents: int
    size_bytes: int
    settled: set[int] = field(default_factory=set)
    is_loaded: bool = False
    is_single: bool = False

    @property
    def pending(self) -> int:
        return self.documents - len(self.settled)

    @property
    def held_bytes(self) -> int:
        """At most, of what is pending in memory; on the disk it is less."""
        return self.size_bytes + HELD_BYTES * self.pending


@dataclass(slots=True, eq=False)
class Lane:
    """One kind. ``items`` and ``size_bytes`` count everything in memory, whatever its state."""

    kind: str
    is_kept: bool
    linger_ms: int
    items: int = 0
    size_bytes: int = 0
    rows_left: int = 0  # of ``offers``
    offers: deque[Offered] = field(default_factory=deque)
    ready: deque[Held] = field(default_factory=deque)
    flight: list[Held] = field(default_factory=list)
    segments: dict[int, Segment] = field(default_factory=dict)  # in order of their numbers
    resume_ms: int = 0  # nothing is sent before
    bad_rounds: int = 0  # answers in a row that put most of their documents off
    is_writing: bool = False  # a part of it is on its way to the disk
    spill_turn: bool = False  # the spill is next, if it has anything
    _again: list[tuple[int, int, Held]] = field(default_factory=list)
    _ties: Iterator[int] = field(default_factory=itertools.count)

    # --- rows that come ---------------------------------------------------------------------------------------------------
    def take_in(self, offered: Offered) -> None:
        self.offers.append(offered)
        self.items += offered.rows.rows
        self.rows_left += offered.rows.rows
        self.size_bytes += offered.rows.size_bytes

    def cut(self, rows_max: int, offer_max: int) -> list[Slice]:
        """The oldest rows that are not JSON yet, of offers up to ``offer_max``; they stay counted until ``put``."""
        slices: list[Slice] = []
        while rows_max > 0 and self.offers and self.offers[0].offer <= offer_max:
            first = self.offers[0]
            start, stop = first.at, min(first.at + rows_max, first.rows.rows)
            size = first.rows.size_bytes
            share = size * stop // first.rows.rows - size * start // first.rows.rows
            first.at = stop
            if not first.left:
                self.offers.popleft()
            slices.append(Slice(first.offer, first.rows, first.since_ms, start, stop, share))
            rows_max -= stop - start
        self.rows_left -= sum(cut.stop - cut.start for cut in slices)
        return slices

    def put(self, cut: Slice, documents: list[Document]) -> None:
        """Documents in place of the rows they were made of."""
        held = [Held(document, cut.offer, cut.since_ms) for document in documents]
        self.items += len(held) - (cut.stop - cut.start)
        self.size_bytes += sum(one.size_bytes for one in held) - cut.size_bytes
        self.ready.extend(held)

    def load(self, segment: Segment, documents: dict[int, Document], now_ms: int) -> None:
        """What of a file of the spill is not settled, by place, to be sent before what is ready."""
        held = [Held(document, 0, now_ms, segment.number, place) for place, document in documents.items() if place not in segment.settled]
        segment.is_loaded = True
        self.ready.extendleft(reversed(held))
        self.items += len(held)
        self.size_bytes += sum(one.size_bytes for one in held)

    # --- documents that go ------------------------------------------------------------------------------------------------
    def release(self, held: Held) -> None:
        """It is not in memory any more."""
        self.items -= 1
        self.size_bytes -= held.size_bytes

    def put_off(self, held: Held, due_ms: int) -> None:
        heapq.heappush(self._again, (due_ms, next(self._ties), held))

    def put_back(self, batch: list[Held]) -> None:
        self.ready.extendleft(reversed(batch))

    def take_batch(self, now_ms: int, items_max: int, bytes_max: int) -> list[Held]:
        """Those put off that are due, then what is ready, the oldest first: within both limits, one at least if there is any."""
        batch: list[Held] = []
        size = 0
        while len(batch) < items_max:
            is_due = self._again and self._again[0][0] <= now_ms
            if not is_due and not self.ready:
                break
            size += (self._again[0][2] if is_due else self.ready[0]).size_bytes
            if batch and size > bytes_max:
                break
            batch.append(heapq.heappop(self._again)[2] if is_due else self.ready.popleft())
        return batch

    def take_waiting(self, bytes_max: int, offer_max: int) -> list[Held]:
        """What is ready or put off, in no file yet, of offers up to ``offer_max``: the oldest first, up to ``bytes_max`` and one more."""
        taken: list[Held] = []
        passed: list[Held] = []
        size = 0

        def is_taken(held: Held) -> bool:
            nonlocal size
            if size >= bytes_max or held.segment or held.offer > offer_max:
                return False
            taken.append(held)
            size += held.size_bytes
            return True

        if self._again:
            self._again = [entry for entry in sorted(self._again) if not is_taken(entry[2])]  # a sorted list is a heap
        while self.ready and size < bytes_max:
            held = self.ready.popleft()
            if not is_taken(held):
                passed.append(held)
        self.ready.extendleft(reversed(passed))
        return taken

    def unload(self) -> int:
        """Forget what files of the spill have as well, but for what is on its way; the files are read again later. Returns how many."""
        in_files = [held for held in (*self.ready, *(one for _, _, one in self._again)) if held.segment]
        if in_files:
            self.ready = deque(held for held in self.ready if not held.segment)
            self._again = [entry for entry in self._again if not entry[2].segment]
            heapq.heapify(self._again)
            for held in in_files:
                self.segments[held.segment].is_loaded = False
                self.release(held)
        return len(in_files)

    # --- questions --------------------------------------------------------------------------------------------------------
    def next_due_ms(self) -> int | None:
        """When the first of those put off is due."""
        return self._again[0][0] if self._again else None

    def oldest_ms(self) -> int | None:
        """Since when the first of the ready ones, or of the rows, waits."""
        moments = [queue[0].since_ms for queue in (self.ready, self.offers) if queue]
        return min(moments) if moments else None

    def waiting(self) -> int:
        """Rows and documents that could be sent, those put off not counted."""
        return len(self.ready) + self.rows_left

    def stored(self) -> Segment | None:
        """The oldest file of the spill that is not loaded."""
        return next((segment for segment in self.segments.values() if not segment.is_loaded), None)

    def small_segments(self, bytes_max: int) -> list[Segment]:
        """The oldest files of the spill that are, in memory, less than half of ``bytes_max``, as many as it holds; none below ``SMALL_FILES_MAX``.

        Nothing of them is in memory or on its way.
        """
        if len(self.segments) < SMALL_FILES_MAX:
            return []
        on_their_way = {held.segment for held in self.flight}
        idle = (one for one in self.segments.values() if not one.is_loaded and not one.is_single and one.number not in on_their_way)
        small = [one for one in idle if 2 * one.held_bytes < bytes_max]
        if len(small) < SMALL_FILES_MAX:
            return []
        ends = itertools.accumulate(one.held_bytes for one in small)
        return [one for one, end in zip(small, ends, strict=True) if end <= bytes_max]
