"""Cohorts of all partitions: partial sums in, rows of 1, 10 and 60 s out, each as often as it changes.

A partial of a partition and window takes the place of that partition's earlier one, so what is replayed after a restart changes nothing.
A window is given out when every partition has passed it, or when the first to pass it has left it ``lateness_max_ms`` behind; what is told
of it later is added up anew, and its rows are given out again: the same keys, whole sums, a higher ``revision``. That is how many partials (a
partition's of a second) are in the sums, so it follows from what is known, not from who knew it when: a merge begun anew, which knows less at
first, never has its rows taken for newer ones. Pure: who calls it has the clock, the partials and the index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from keystone.config import CohortsConfig
from keystone.events import I64
from keystone.kernels.cohorts import BIN_SHIFT
from keystone.qoe import CONCURRENT, SUMS, WINDOWS_MS, CohortPartial, Key
from keystone.qoe_bins import BIN_MASK, added_up, narrowed
from keystone.qoe_rows import SOURCE, START, quantile_table, row_schema, rows_of, summed, told_schema, told_with

REVISION: Final = "revision"
SECOND_MS, MINUTE_MS = WINDOWS_MS[0], WINDOWS_MS[-1]


NAMES_MIN: Final = 1 << 16  # of cohorts: before there are so many, or twice as many as were in use, none is forgotten; x ~300 B = 20 MB
BINS_A_ROW: Final = 16  # as many bins take the memory of a row: 9 to 16 B each


class _Part(NamedTuple):
    """What one partition tells of one window. ``keys`` as in ``qoe_bins``, in any order; ``counts`` as narrow as can be."""

    rows: pl.DataFrame
    keys: I64
    counts: npt.NDArray[Any]

    @property
    def size(self) -> int:
        """In rows."""
        return self.rows.height + self.keys.size // BINS_A_ROW


class _Names:
    """Numbers for keys of cohorts, while anything held is of them."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._numbers: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, keys: Iterable[Key], theirs: tuple[str, ...], dimensions: tuple[str, ...]) -> I64:
        """The number of each of these keys of the dimensions ``theirs``."""
        places = [theirs.index(name) if name in theirs else None for name in dimensions]
        return np.array([self._number(tuple(None if at is None else key[at] for at in places)) for key in keys], np.int64)

    def table(self, numbers: I64, dimensions: tuple[str, ...]) -> pl.DataFrame:
        """A column a dimension."""
        keys = [self._keys[number] for number in numbers.tolist()]
        return pl.DataFrame({name: pl.Series([key[k] for key in keys], dtype=pl.String) for k, name in enumerate(dimensions)})

    def keep(self, numbers: I64) -> None:
        """Only these, rising: they are numbered from 0 on now."""
        self._keys = [self._keys[number] for number in numbers.tolist()]
        self._numbers = {key: number for number, key in enumerate(self._keys)}

    def _number(self, key: Key) -> int:
        number = self._numbers.setdefault(key, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key)
        return number


@dataclass(slots=True)
class MergeCounters:
    """``late_rows``: dropped, of windows that are held no more; by partition in ``late_partitions``. ``forced``: windows given out early for want of room."""

    rows: int = 0  # given out
    corrections: int = 0  # windows given out again
    late_rows: int = 0
    late_partitions: dict[int, int] = field(default_factory=dict)
    forced: int = 0


_NO_BINS: Final = (np.zeros(0, np.int64), np.zeros(0, np.int8))


class CohortMerge:
    """One thread calls it. Memory: ``windows_held`` s of log time and ``rows_held_max`` rows; whole minutes are let go of, the oldest first."""

    def __init__(self, config: CohortsConfig, partitions: Iterable[int] = ()) -> None:
        self.counters = MergeCounters()
        self._config = config
        self._dimensions = config.dimensions
        self._passed: dict[int, int] = dict.fromkeys(partitions, 0)
        self._parts: dict[int, dict[int, _Part]] = {}  # by window start and partition
        self._due: dict[int, set[int]] = {size: set() for size in WINDOWS_MS}  # window starts to give out, again or for the first time
        self._told: set[tuple[int, int]] = set()  # windows given out and held, by size and start
        self._changes: dict[int, int] = {}  # by window of 1 s, how often a partial took the place of another
        self._rows = 0
        self._names = _Names()  # of cohorts with startups
        self._names_max = NAMES_MIN
        self._floor_ms = 0  # what begins before is held no more

    @property
    def windows(self) -> int:
        """Windows of 1 s held."""
        return len(self._parts)

    @property
    def rows_held(self) -> int:
        """Rows of partials held."""
        return self._rows

    def expect(self, partitions: Iterable[int]) -> None:
        """Windows wait for exactly these from now on. Those that come new have passed nothing yet."""
        self._passed = {partition: self._passed.get(partition, 0) for partition in partitions}

    def take(self, partials: Iterable[CohortPartial], passed_ms: Mapping[int, int] | None = None) -> None:
        """Partials, of any partitions and windows, in any order; and how far log time has passed in partitions (never back)."""
        given = [partial for partial in partials if partial.rows]
        rows = rows_of(given, self._dimensions, with_source=True)
        bins = [self._bins_by_window(partial) for partial in given]
        for (source, start), part in rows.partition_by([SOURCE, START], maintain_order=True, as_dict=True, include_key=True).items():
            self._place(int(start), given[int(source)].partition, _Part(part.drop(SOURCE), *bins[int(source)].get(int(start), _NO_BINS)))
        for partition, until_ms in (passed_ms or {}).items():
            self._passed[partition] = max(self._passed.get(partition, 0), until_ms)

    def emit(self) -> pl.DataFrame:
        """The rows that are ready: new windows, and corrected ones. Columns of ``told_schema`` and ``revision``."""
        first_ms, last_ms = min(self._passed.values(), default=0), max(self._passed.values(), default=0)
        ready_ms = max(first_ms, last_ms - self._config.lateness_max_ms)
        kept_ms = self._kept_from(first_ms, last_ms)
        found = [self._windows(size, ready_ms, kept_ms) for size in WINDOWS_MS]
        self._forget(kept_ms)
        told_now = pl.concat(found)
        self.counters.rows += told_now.height
        return told_now

    def finish(self) -> pl.DataFrame:
        """Everything that was not given out yet, complete or not: before the end."""
        found = [self._windows(size, 1 << 62, 0) for size in WINDOWS_MS]
        told_now = pl.concat(found)
        self.counters.rows += told_now.height
        return told_now

    def _bins_by_window(self, partial: CohortPartial) -> dict[int, tuple[I64, npt.NDArray[Any]]]:
        starts, cohorts, bins, counts = partial.bins.T
        is_used = np.zeros(len(partial.keys), np.bool_)
        is_used[cohorts] = True
        numbers = np.zeros(len(partial.keys), np.int64)
        numbers[is_used] = self._names.of([partial.keys[place] for place in np.flatnonzero(is_used).tolist()], partial.dimensions, self._dimensions)
        keys, counts = numbers[cohorts] << BIN_SHIFT | bins, narrowed(counts)
        if starts.size and starts.min() == starts.max():
            return {int(starts[0]): (keys, counts)}
        return {start: (keys[starts == start], counts[starts == start]) for start in np.unique(starts).tolist()}

    def _place(self, start: int, partition: int, part: _Part) -> None:
        if start < self._floor_ms:
            self.counters.late_rows += part.rows.height
            self.counters.late_partitions[partition] = self.counters.late_partitions.get(partition, 0) + part.rows.height
            return
        parts = self._parts.setdefault(start, {})
        earlier = parts.get(partition)
        if earlier is not None:
            if _same(earlier, part):
                return
            # Whoever was told of before must be told that nothing is left of it.
            gone = earlier.rows.with_columns(pl.lit(0, pl.Int64).alias(name) for name in (*SUMS, CONCURRENT))
            part = part._replace(rows=pl.concat([part.rows, gone.unique()]))
            self._rows -= earlier.size
            self._changes[start] = self._changes.get(start, 0) + 1
        parts[partition] = part
        self._rows += part.size
        for size, due in self._due.items():
            due.add(start // size * size)

    def _kept_from(self, first_ms: int, last_ms: int) -> int:
        """Where what is held afterwards begins: whole minutes. What some partition has not passed yet is held as long as there is room."""
        kept_ms = max(self._floor_ms, min(first_ms, last_ms - self._config.windows_held * SECOND_MS) // MINUTE_MS * MINUTE_MS)
        rows = self._rows
        for minute in sorted({start // MINUTE_MS * MINUTE_MS for start in self._parts}):
            if minute >= kept_ms and rows > self._config.rows_held_max:
                kept_ms = minute + MINUTE_MS
            if minute < kept_ms:
                rows -= sum(part.size for start in range(minute, minute + MINUTE_MS, SECOND_MS) for part in self._parts.get(start, {}).values())
        return kept_ms

    def _windows(self, size: int, ready_ms: int, kept_ms: int) -> pl.DataFrame:
        """Of one size: what is due and over by ``ready_ms``, or let go of."""
        due = sorted(start for start in self._due[size] if start + size <= ready_ms or start < kept_ms)
        if not due:
            return pl.DataFrame(schema={**told_schema(self._dimensions), REVISION: pl.Int64()})
        self.counters.forced += sum(start + size > ready_ms for start in due)
        self._due[size].difference_update(due)
        parts = [part for start in due for second in range(start, start + size, SECOND_MS) for part in self._parts.get(second, {}).values()]
        rows = pl.concat([pl.DataFrame(schema=row_schema(self._dimensions)), *(part.rows for part in parts)])
        quantiles = pl.concat([self._quantiles(start, size) for start in due])
        found = told_with(summed(rows, self._dimensions), quantiles, self._dimensions, size)
        revisions = {start: self._revision(start, size) for start in due}
        told_now = {(size, start) for start in due}
        self.counters.corrections += len(told_now & self._told)
        self._told |= told_now
        return found.with_columns(pl.col(START).replace_strict(revisions, return_dtype=pl.Int64).alias(REVISION)).sort(START, *self._dimensions)

    def _quantiles(self, start: int, size: int) -> pl.DataFrame:
        """Of one window."""
        parts = [part for second in range(start, start + size, SECOND_MS) for part in self._parts.get(second, {}).values()]
        keys, counts = added_up((part.keys, part.counts.astype(np.int64)) for part in parts)
        names = self._names.table(np.unique(keys >> BIN_SHIFT), self._dimensions)
        return quantile_table(names.insert_column(0, pl.repeat(start, names.height, dtype=pl.Int64, eager=True).alias(START)), keys, counts)

    def _revision(self, start: int, size: int) -> int:
        return sum(len(self._parts.get(second, ())) + self._changes.get(second, 0) for second in range(start, start + size, SECOND_MS))

    def _forget(self, kept_ms: int) -> None:
        self._floor_ms = kept_ms
        for start in [start for start in self._parts if start < kept_ms]:
            self._rows -= sum(part.size for part in self._parts.pop(start).values())
        self._told = {key for key in self._told if key[1] >= kept_ms}
        self._changes = {start: count for start, count in self._changes.items() if start >= kept_ms}
        if len(self._names) > self._names_max:
            self._renumber()

    def _renumber(self) -> None:
        """Forget the names of cohorts that nothing is held of."""
        used = np.unique(np.concatenate([[-1], *(part.keys >> BIN_SHIFT for parts in self._parts.values() for part in parts.values())]))[1:]
        self._names.keep(used)
        for parts in self._parts.values():
            for partition, part in parts.items():
                numbers = np.searchsorted(used, part.keys >> BIN_SHIFT)
                parts[partition] = part._replace(keys=numbers << BIN_SHIFT | part.keys & BIN_MASK)
        self._names_max = max(NAMES_MIN, 2 * used.size)


def _same(left: _Part, right: _Part) -> bool:
    """Rows that tell nothing (``gone`` ones) aside."""
    if not _told(left.rows).equals(_told(right.rows)):
        return False
    mine, its = (added_up([(part.keys, part.counts.astype(np.int64))]) for part in (left, right))
    return np.array_equal(mine[0], its[0]) and np.array_equal(mine[1], its[1])


def _told(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.any_horizontal(pl.col(name) != 0 for name in (*SUMS, CONCURRENT))).sort(rows.columns)
