"""The audit of one lake: each partition's log beside its lake and its dead letters, then the index beside the lake.

Compared is what every sink must have by now: offsets behind which the lake's last commit lies. A checkpoint, and so a commit, waits until alerts
and dead letters before it are delivered; what is newer is in flight and counted as such.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from keystone.audit.lake_side import LakeSide
from keystone.audit.log_side import LogSide
from keystone.audit.places import NO_PLACES, Cells, Difference, Places, by_minute, compare, differences, is_not_kept, keys_of
from keystone.errors import OffsetOutOfRange, UsageError
from keystone.events import REASONS
from keystone.sinks.letters_read import LetterSource
from keystone.sinks.ndjson import NOT_KEPT

LATE_MS: Final = 300_000  # in flight for longer: said, because somebody should look at the committer
RUNS_SHOWN_MAX: Final = 5
LAKE, LETTERS = "lake", "dead letters"


@dataclass(slots=True)
class PartitionAudit:
    """Compared were offsets [first_offset, next_offset). ``in_flight``: records behind, the oldest appended at ``in_flight_ms``."""

    partition: int
    first_offset: int = 0
    next_offset: int = 0
    in_flight: int = 0
    in_flight_ms: int | None = None

    @property
    def is_caught_up(self) -> bool:
        return self.in_flight == 0


@dataclass(slots=True)
class Audit:
    """What was found. ``notes``: one line each, for people; none of them is a difference."""

    partitions: list[PartitionAudit] = field(default_factory=list)
    cells: Cells = field(default_factory=Cells)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    in_flight_documents: int = 0
    indexed: dict[str, tuple[int, int]] = field(default_factory=dict)  # kind: expected and found
    held_back: dict[str, int] = field(default_factory=dict)  # kind: rows of the lake that a route does not give to the index

    @property
    def is_clean(self) -> bool:
        return not self.differences


@dataclass(slots=True)
class Streams:
    """Walks the partitions of a log and a lake. ``letters``: None where none are compared. Times are of the append.

    ``run``: whose letters are this lake's, of several runs' in one place; None where nothing tells it.
    """

    log: LogSide
    lake: LakeSide
    letters: LetterSource | None
    from_ms: int | None = None
    until_ms: int | None = None
    run: str | None = None
    on_events: Callable[[int], None] = lambda _: None
    letters_by_run: Counter[str] = field(default_factory=Counter)  # of all that were looked at

    def into(self, found: Audit) -> None:
        """Everything about the partitions. ``UsageError`` where letters of several runs are there, and which are this lake's is not known."""
        bounds = self.log.bounds()  # after the lake's chain was read: what is caught up then, was
        first = self.log.offsets_at(self.from_ms) if self.from_ms is not None else {}
        last = self.log.offsets_at(self.until_ms) if self.until_ms is not None else {}
        for partition in sorted({*bounds, *self.lake.partitions}):
            there = bounds.get(partition, (0, 0))
            found.partitions.append(_Partition(self, found, partition, there).audited(first.get(partition, 0), last.get(partition, 1 << 62)))
        self._check_runs(found)
        found.notes += [f"the log has a gap: {gap}" for gap in self.log.gaps]
        found.differences += [Difference(-1, None, LAKE, first=fault) for fault in self.lake.faults]

    def _check_runs(self, found: Audit) -> None:
        if self.run is None and len(self.letters_by_run) > 1:
            place, names = self.letters.url if self.letters is not None else "", ", ".join(sorted(self.letters_by_run)[:RUNS_SHOWN_MAX])
            raise UsageError(
                f"{place} has dead letters of several runs ({names}), and no state beside the lake says which are its own: name it by --state, or say"
                " --dead-letters none"
            )
        others = sum(count for run, count in self.letters_by_run.items() if run != self.run) if self.run is not None else 0
        if others:
            found.notes.append(f"{others:,} dead letters of other runs are in the same place: not compared")


@dataclass(slots=True)
class _Partition:
    streams: Streams
    found: Audit
    partition: int
    bounds: tuple[int, int]

    def audited(self, from_offset: int, to_offset: int) -> PartitionAudit:
        start, end = self.bounds
        link = self.streams.lake.chain.get(self.partition)
        if link is None:
            if rows := self.streams.lake.rows(self.partition):
                self._differs(f"{rows:,} rows, and the lake's chain knows nothing of this partition")
            return PartitionAudit(self.partition, start, start, end - start, self._appended_at(start, end))
        result = PartitionAudit(self.partition, max(link.first_offset, start, from_offset), min(link.next_offset, to_offset))
        result.next_offset = max(result.first_offset, result.next_offset)
        if link.next_offset > end:
            self._differs(f"the lake is committed to offset {link.next_offset:,}, and the log ends at {end:,}: it is not the log of this lake")
            return result
        result.in_flight = end - max(link.next_offset, start)
        result.in_flight_ms = self._appended_at(max(link.next_offset, start), end)
        if start > max(link.first_offset, from_offset):
            self._note(f"the log has forgotten offsets {max(link.first_offset, from_offset):,} to {start - 1:,}: audited from what is left")
        if self.streams.lake.has_earlier_logs(self.partition):
            self._note("the log was made anew: what the lake has of the earlier one is not compared")
        dead = self._compare_lake(result, link.first_offset, link.next_offset)
        if self.streams.letters is not None:
            self._compare_letters(result, dead, self.streams.letters)
        return result

    def _appended_at(self, offset: int, end: int) -> int | None:
        return self.streams.log.appended_at(self.partition, offset) if offset < end else None

    def _note(self, text: str) -> None:
        self.found.notes.append(f"partition {self.partition}: {text}")

    def _differs(self, text: str) -> None:
        self.found.differences.append(Difference(self.partition, None, LAKE, first=text))

    # --- events -----------------------------------------------------------------------------------------------------------
    def _compare_lake(self, scope: PartitionAudit, first_committed: int, next_committed: int) -> Places:
        """Counts, and differences by minute; returns what the log says is dead."""
        dead = [NO_PLACES]
        place = scope.first_offset
        for rows, behind in self._windows(scope, next_committed):
            is_outside = (rows[:, 0] < first_committed) | (rows[:, 0] >= next_committed)
            if is_outside.any() and self.streams.until_ms is None:
                self._judge(NO_PLACES, rows[is_outside])
            stop = min(behind, scope.next_offset)
            if stop > place:
                dead += self._compare_window(rows[~is_outside], place, stop)
                place = stop
        return np.concatenate(dead)

    def _windows(self, scope: PartitionAudit, next_committed: int) -> Iterator[tuple[Places, int]]:
        """Of the lake, and one without rows for what is behind them all."""
        yield from self.streams.lake.windows(self.partition, scope.first_offset, next_committed)
        yield NO_PLACES, next_committed

    def _compare_window(self, rows: Places, first: int, end: int) -> list[Places]:
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        dead: list[Places] = []
        while first < end:
            try:
                for again in self.streams.log.read(self.partition, first, end):
                    at, behind = np.searchsorted(rows[:, 0], (again.first_offset, again.next_offset))
                    self.found.cells.add(self.partition, again.accepted[:, 2], "received", "accepted")
                    self.found.cells.add(self.partition, again.dead[:, 2], "received", "dead")
                    self._judge(again.accepted, rows[at:behind])
                    dead.append(again.dead)
                    first = again.next_offset
                    self.streams.on_events(len(again.accepted))
            except OffsetOutOfRange:
                left = self.streams.log.start_offset(self.partition)
                if left <= first:
                    raise
                self._note(f"the log forgot offsets {first:,} to {left - 1:,} meanwhile: not compared")
                first = left
        return dead

    def _judge(self, expected: Places, rows: Places) -> None:
        """What the log accepts beside what the lake has. Minutes are the log's, where it has the line."""
        if np.array_equal(expected[:, :2], rows[:, :2]):
            self.found.cells.add(self.partition, expected[:, 2], "lake")
            return
        self.found.cells.add(self.partition, rows[:, 2], "lake")
        sides = compare(expected, rows)
        if not sides.are_same:
            self.found.differences += differences(self.partition, LAKE, expected, rows, sides, (by_minute(expected), by_minute(rows)))

    # --- dead letters -----------------------------------------------------------------------------------------------------
    def _compare_letters(self, scope: PartitionAudit, dead: Places, source: LetterSource) -> None:
        letters, kept, markers = self._letters(scope, dead, source)
        if source.forgotten(self.partition):
            first = int(keys_of(letters).min()) if len(letters) else 1 << 62
            if (gone := keys_of(dead) < first).any():
                self._note(f"{int(gone.sum()):,} dead letters are older than what their topic retains: not compared")
                dead = dead[~gone]
        self.found.cells.add(self.partition, letters[:, 2], "letters")
        sides = compare(dead, letters)
        if sides.doubled.any() and not source.is_exact:
            self._note(f"{int(sides.doubled.sum()):,} dead letters are there more than once, with the same place, as may be where they are")
            letters, sides = letters[~sides.doubled], sides._replace(extra=sides.extra[~sides.doubled], doubled=sides.doubled[~sides.doubled])
        away = np.flatnonzero(sides.missing)
        not_kept = is_not_kept(dead[away], kept, markers)
        if not_kept.any():
            self.found.cells.add(self.partition, dead[away[not_kept], 2], "not_kept")
            self._note(f"{int(not_kept.sum()):,} dead letters were counted and not kept (dead_letters.bytes_max)")
            sides.missing[away[not_kept]] = False
        if not sides.are_same:
            self.found.differences += differences(self.partition, LETTERS, dead, letters, sides, (by_minute(dead), by_minute(letters)))

    def _letters(self, scope: PartitionAudit, dead: Places, source: LetterSource) -> tuple[Places, Places, Places]:
        """Those of the offsets compared, each with the append time that the log tells (0: it tells none); all there are, and the markers, without one."""
        rows: list[tuple[int, int, int]] = []
        marks: list[tuple[int, int, int]] = []
        for letter in source.letters(self.partition):
            if letter.run is not None:
                self.streams.letters_by_run[letter.run] += 1
                if self.streams.run not in {None, letter.run}:
                    continue
            if letter.reason == NOT_KEPT:
                marks.append((letter.place.offset, letter.place.line, 0))
            elif letter.reason in REASONS:
                rows.append((letter.place.offset, letter.place.line, 0))
        kept, markers = (np.array(some, np.int64).reshape(-1, 3) for some in (rows, marks))
        letters = kept[(kept[:, 0] >= scope.first_offset) & (kept[:, 0] < scope.next_offset)]
        if len(letters) and len(dead):
            known, asked = keys_of(dead), keys_of(letters)
            at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
            letters[:, 2] = np.where(known[at] == asked, dead[at, 2], 0)
        return letters, kept, markers


def late_notes(found: Audit, now_ms: int | None = None) -> list[str]:
    """Of what has been in flight for so long that somebody should look."""
    now = now_ms if now_ms is not None else int(time.time() * 1_000)
    late = [p for p in found.partitions if p.in_flight_ms is not None and now - p.in_flight_ms > LATE_MS]
    return [
        f"partition {p.partition}: {p.in_flight:,} records are in flight, the oldest for {(now - (p.in_flight_ms or 0)) // 1_000:,} s:"
        " is the run that writes this lake up?"
        for p in late
    ]
