"""The memory of a session table's cohorts: growth, windows that pass, what is forgotten; its state as arrays.

With log time one window at a time is under way. ``pass_window`` adds it up to rows of cohorts and begins the next; ``take`` hands the
rows out. At each full minute, where values or combinations have become many, those that no session has are forgotten: a moment that
depends on log time alone, so results do not depend on batches. In a plain file windows come in any order: rows are handed out whenever
memory is full, and add up.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keystone import cohort_snapshot
from keystone.config import CohortsConfig
from keystone.errors import CheckpointDamaged
from keystone.events import CODED_DIMENSIONS, FIRST_DIMENSION, I32, I64
from keystone.kernels import cohorts as kernel
from keystone.kernels import session_rows as layout
from keystone.kernels.cohorts import (
    BIN_SHIFT,
    COMBINATIONS,
    FACT_WORDS,
    FACTS,
    FIRST_VALUE,
    OTHER,
    OUT_WORDS,
    START_WORDS,
    STARTS,
    WINDOW,
    WINDOW_END,
    WINDOW_MS,
    WINDOW_SHIFT,
)
from keystone.mappings import Mapping
from keystone.qoe import NAMES, CohortPartial, Key, Layout
from keystone.qoe_bins import BIN_MASK, Tally
from keystone.session_snapshot import Arrays, DictionaryStore

COMBINATIONS_MIN: Final = 1 << 10
GROWTH: Final = 8
FILE_COMBINATIONS_MAX: Final = 1 << 24  # of a plain file, whose sessions are all kept anyway, at three times the memory; so that partitions agree
FILE_FACTS: Final = 1 << 14  # of a plain file, held at once: x 144 B = 2.4 MB
STARTS_MIN: Final = 1 << 12
EXPANDED_MAX: Final = 1 << 12  # facts that become rows in one call: room for 9 rows each is 6 MB
ROWS_HELD_MAX: Final = 1 << 16  # rows of cohorts in the kernel's arrays: more become a partial of their own; x 152 B = 10 MB
LEAN_SHARE: Final = 0.75  # of combinations_max: from there on new combinations tell the first half of the dimensions apart
MINUTE_WINDOWS: Final = 60
FILE_REACH_MS: Final = 30 * 86_400_000  # a plain file's ts are held so close to its first event's
_NOTHING: Final = np.zeros(0, np.int64)


class CohortMemory:
    """Cohorts of one session table. ``cohorts`` is what kernels take; another object after every growth."""

    def __init__(self, config: CohortsConfig | None, *, timeout_ms: int, has_log_time: bool, rows: int) -> None:
        self.is_on = config is not None and config.enabled
        self.partition = 0
        self.cohorts = kernel.off()
        self._needs_anchor = not has_log_time
        if config is None or not config.enabled:
            return
        self._rules = cohort_snapshot.rules_of(config, has_log_time=has_log_time)
        self.layout = Layout(config)
        self._dims: I64 = np.array([CODED_DIMENSIONS.index(name) for name in config.dimensions], np.int64)
        self._values_max = config.values_max
        self._combinations_max = config.combinations_max if has_log_time else FILE_COMBINATIONS_MAX
        self._timeout_ms, self._has_log_time = timeout_ms, has_log_time
        self._rows_max = rows
        self._of_row = Mapping(rows * 4)
        self._values_numbered = FIRST_VALUE + config.values_max
        slots = 1 << (2 * config.values_max - 1).bit_length()
        self._value_slots: I64 = np.zeros(len(self._dims) * slots if has_log_time else 0, np.int64)
        self._value_codes: I32 = np.full(len(self._dims) * self._values_numbered, -1, np.int32)
        self._counts: I64 = np.zeros(len(self._dims), np.int64)
        self._state: I64 = np.zeros(kernel.COHORT_STATE_WORDS, np.int64)
        self._state[WINDOW_END] = np.iinfo(np.int64).min if has_log_time else np.iinfo(np.int64).max  # the first event begins the first window
        self._scratch = np.zeros(len(self._dims), np.int64), np.zeros(layout.DIMS, np.int32)
        self._starts: I64 = np.zeros(STARTS_MIN * START_WORDS, np.int64)
        self._allocate(COMBINATIONS_MIN)
        self._plays[0] = 0
        self._keys[: len(self._dims)] = OTHER
        self._state[COMBINATIONS] = 1
        self._bind()
        kernel.fill_key_slots(self.cohorts)
        self._slots: I32 = np.full(self.layout.cohorts, -1, np.int32)
        self._out_keys, self._out_sums, self._out_state = _NOTHING, _NOTHING, np.zeros(1, np.int64)
        self._ready: list[CohortPartial] = []
        self._bins: list[I64] = []
        self._tally = Tally()
        self._texts: npt.NDArray[Any] = np.full(self.layout.cohorts, None, object)  # keys by cohort, as they are asked for
        self._is_named = np.zeros(self.layout.cohorts, np.bool_)

    # --- memory -------------------------------------------------------------------------------------------------------
    def _allocate(self, combinations: int) -> None:
        """Room for so many combinations, and all they ask for; what is kept is copied by the caller."""
        facts = combinations if self._has_log_time else FILE_FACTS
        self._keys = Mapping(combinations * len(self._dims) * 2).view(np.uint16)
        self._plays = Mapping(combinations * 8).view(np.int64)[:combinations]
        self._key_slots = np.full(2 << (combinations - 1).bit_length(), layout.EMPTY, np.uint32)
        self._places = np.full(combinations if self._has_log_time else 2 * FILE_FACTS, layout.EMPTY, np.uint32)
        self._facts = Mapping(facts * FACT_WORDS * 8).view(np.int64)[: facts * FACT_WORDS]
        self._fact_combinations = Mapping(facts * 4).view(np.uint32)[:facts]
        self._fact_windows = Mapping(facts * 8).view(np.int64)[:facts]

    def _bind(self) -> None:
        lean_from = int(LEAN_SHARE * self._combinations_max)
        self.cohorts = kernel.Cohorts(
            self._of_row.view(np.uint32)[: self._rows_max], self._state, self._dims, *self._scratch, self._value_slots, self._value_codes, self._counts,
            self._keys, self._key_slots, self._plays, self._places, self._facts, self._fact_combinations, self._fact_windows, self._starts,
            self._values_max, self._combinations_max, lean_from, max(1, len(self._dims) // 2), self._timeout_ms, int(self._has_log_time), 1,
        )  # fmt: skip

    def grow_rows(self, rows: int) -> None:
        """The table has let go of its views; ours would keep the memory from growing in place."""
        if self.is_on:
            self.cohorts = kernel.off()
            self._rows_max = rows
            self._of_row.grow(rows * 4)
            self._bind()

    def grow_combinations(self) -> None:
        """Eight times the room, up to the limit."""
        known, had = int(self._state[COMBINATIONS]), self._plays.size
        if had >= self._combinations_max:
            return
        keys, plays, places = self._keys, self._plays, self._places
        facts, fact_combinations, fact_windows = self._facts, self._fact_combinations, self._fact_windows
        self._allocate(min(had * GROWTH, self._combinations_max))
        used = known * len(self._dims)
        self._keys[:used], self._plays[:known] = keys[:used], plays[:known]
        self._places[: places.size] = places
        count = int(self._state[FACTS])
        self._facts[: count * FACT_WORDS] = facts[: count * FACT_WORDS]
        self._fact_combinations[:count], self._fact_windows[:count] = fact_combinations[:count], fact_windows[:count]
        self._bind()
        kernel.fill_key_slots(self.cohorts)

    def make_room(self, dictionaries: DictionaryStore) -> None:
        """Do what a kernel asked for by ROOM_COHORTS."""
        if not self._has_log_time:
            self._drain_file(dictionaries)
        elif (int(self._state[STARTS]) + layout.CHUNK) * START_WORDS > self._starts.size:
            self._starts = np.concatenate((self._starts, np.zeros_like(self._starts)))
            self._bind()
        if int(self._state[COMBINATIONS]) + layout.CHUNK > self._plays.size:
            self.grow_combinations()

    def state_bytes(self, rows: int) -> int:
        """Bytes ever written, with so many rows of sessions."""
        if not self.is_on:
            return 0
        known, facts = int(self._state[COMBINATIONS]), int(self._state[FACTS])
        held = (self._value_slots, self._value_codes, self._key_slots, self._places, self._starts, self._slots, self._tally)
        fixed = sum(one.nbytes for one in held)
        return fixed + 4 * rows + known * (2 * len(self._dims) + 8) + facts * (8 * FACT_WORDS + 12) + self._out_keys.nbytes + self._out_sums.nbytes

    @property
    def overflows(self) -> int:
        """Sessions opened that have `other` where they gave a value."""
        return int(self._state[kernel.OVERFLOWS]) if self.is_on else 0

    # --- windows ------------------------------------------------------------------------------------------------------
    @property
    def has_windows(self) -> bool:
        """Whether log time divides events into windows, one under way at a time."""
        return self.is_on and self._has_log_time

    @property
    def window(self) -> int | None:
        """The number of the window under way (its start is that many seconds); None before the first."""
        return int(self._state[WINDOW]) if self.has_windows and int(self._state[WINDOW_END]) > 0 else None

    def begin_window(self, window: int) -> None:
        """Facts from now on are of that one."""
        self._state[[WINDOW, WINDOW_END]] = window, (window + 1) * WINDOW_MS

    def pass_window(self, following: int, dictionaries: DictionaryStore, table: layout.Table) -> None:
        """All that is due in the window under way has been done: add it up, and go on with ``following``."""
        passed = int(self._state[WINDOW])
        self.end_window(dictionaries)
        self.begin_window(following)
        if following // MINUTE_WINDOWS > passed // MINUTE_WINDOWS and self._is_crowded():
            self._name_rows(dictionaries)
            self._forget(table)

    def end_window(self, dictionaries: DictionaryStore) -> None:
        """Add the facts of the window under way up to rows."""
        count, known = int(self._state[FACTS]), int(self._state[COMBINATIONS])
        if count or self._plays[:known].any():
            self._expand(np.arange(count, dtype=np.int64), min(self.layout.cohorts, self.layout.groupings * known), dictionaries)
            self._places[self._fact_combinations[:count]] = layout.EMPTY
            self._clear_facts()

    def anchor(self, ts_ms: int) -> None:
        """The first accepted event's ``ts`` of a plain file: others are held within 30 days of it. Only the first call counts."""
        if self.is_on and self._needs_anchor:
            self._needs_anchor = False
            self._state[[kernel.FROM_TS, kernel.UNTIL_TS]] = ts_ms - FILE_REACH_MS, ts_ms + FILE_REACH_MS

    def end(self, dictionaries: DictionaryStore) -> None:
        """The end of what is read: all facts become rows, those of a window that is not over too. Nothing may be counted after it."""
        if self.has_windows and self.window is not None:
            self.end_window(dictionaries)
        elif self.is_on:
            self._drain_file(dictionaries)

    def take(self, dictionaries: DictionaryStore) -> list[CohortPartial]:
        """The rows that are ready, with the strings of their values."""
        if not self.is_on or not (self._ready or int(self._out_state[0])):
            return []
        self._name_rows(dictionaries)
        ready, self._ready = self._ready, []
        return ready

    def _clear_facts(self) -> None:
        starts = int(self._state[STARTS])
        if starts:
            self._bins.append(self._bins_of(self._starts[: starts * START_WORDS].reshape(starts, START_WORDS)))
        self._state[[FACTS, STARTS]] = 0

    def _expand(self, order: I64, needed: int, dictionaries: DictionaryStore) -> None:
        """Rows of these facts, ``needed`` at most."""
        used = int(self._out_state[0])
        if used and used + needed > ROWS_HELD_MAX:
            self._name_rows(dictionaries)
            used = 0
        if (used + needed) * OUT_WORDS > self._out_sums.size:
            rows = max(2 * (used + needed), 1 << 10)
            keys, sums = np.empty(2 * rows, np.int64), np.empty(rows * OUT_WORDS, np.int64)
            keys[: 2 * used], sums[: used * OUT_WORDS] = self._out_keys[: 2 * used], self._out_sums[: used * OUT_WORDS]
            self._out_keys, self._out_sums = keys, sums
        kernel.expand(self.cohorts, self._groups(), order, 0, order.size)

    def _groups(self) -> kernel.Groups:
        laid = self.layout
        return kernel.Groups(laid.bases, laid.left, laid.right, laid.pair_bases, self._slots, self._out_keys, self._out_sums, self._out_state, laid.pair_values)

    def _bins_of(self, starts: I64) -> I64:
        """(window, cohort, bin, count) of startups in their cohorts, sorted."""
        windows, numbers = np.array([int(self._state[WINDOW])]), np.zeros(starts.shape[0], np.int64)
        if not self._has_log_time:
            windows, numbers = np.unique(starts[:, 0], return_inverse=True)
        groups = self._groups()
        self._tally.fill(starts.shape[0], lambda first, *table: kernel.count_starts(self.cohorts, groups, numbers, first, *table))
        keys, counts = self._tally.take()
        cohorts = (keys >> BIN_SHIFT) & ((1 << (WINDOW_SHIFT - BIN_SHIFT)) - 1)
        return np.column_stack((windows[keys >> WINDOW_SHIFT], cohorts, keys & BIN_MASK, counts))

    def _drain_file(self, dictionaries: DictionaryStore) -> None:
        """A plain file's facts become rows, of windows that may come again."""
        count = int(self._state[FACTS])
        order = np.argsort(self._fact_windows[:count], kind="stable")
        for first in range(0, count, EXPANDED_MAX):
            part = np.ascontiguousarray(order[first : first + EXPANDED_MAX])
            self._expand(part, part.size * self.layout.groupings, dictionaries)
        self._places.fill(layout.EMPTY)
        self._clear_facts()

    def _name_rows(self, dictionaries: DictionaryStore) -> None:
        """The rows so far as a partial."""
        used = int(self._out_state[0])
        bins = np.concatenate(self._bins) if self._bins else np.zeros((0, 4), np.int64)
        if not used and not bins.size:
            return
        keys = self._out_keys[: 2 * used].reshape(used, 2)
        sums = self._out_sums[: used * OUT_WORDS].reshape(used, OUT_WORDS).copy()
        self._out_state[0], self._bins = 0, []
        is_told = np.zeros(self.layout.cohorts, np.bool_)
        is_told[keys[:, 1]] = is_told[bins[:, 1]] = True
        distinct = np.flatnonzero(is_told)
        for cohort in distinct[~self._is_named[distinct]].tolist():
            self._texts[cohort], self._is_named[cohort] = self._key(cohort, dictionaries), True
        place_of = np.cumsum(is_told, dtype=np.int32) - 1
        named, places = tuple(self._texts[distinct].tolist()), place_of[keys[:, 1]].astype(np.int32)
        bins[:, 0], bins[:, 1] = bins[:, 0] * WINDOW_MS, place_of[bins[:, 1]]
        self._ready.append(
            CohortPartial(self.partition, self.layout.dimensions, named, keys[:, 0] * WINDOW_MS, places, sums, bins, has_log_time=self._has_log_time)
        )

    def _key(self, cohort: int, dictionaries: DictionaryStore) -> Key:
        return tuple(None if number is None else self._text(k, number, dictionaries) for k, number in enumerate(self.layout.numbers_of(cohort)))

    def _text(self, k: int, number: int, dictionaries: DictionaryStore) -> str:
        if number < FIRST_VALUE:
            return NAMES[number]
        code = int(self._value_codes[k * self._values_numbered + number]) if self._has_log_time else number - FIRST_VALUE
        return dictionaries.text(FIRST_DIMENSION + int(self._dims[k]), code)

    # --- what is forgotten --------------------------------------------------------------------------------------------
    def _is_crowded(self) -> bool:
        return bool((self._counts >= self._values_max).any()) or 2 * int(self._state[COMBINATIONS]) > self._combinations_max

    def _forget(self, table: layout.Table) -> None:
        """Values and combinations that no session has, at the beginning of a window: there are no facts, no rows. Order is kept."""
        known, dims = int(self._state[COMBINATIONS]), len(self._dims)
        is_row, of_row = _is_used(table), self.cohorts.of_row
        is_kept = np.zeros(known, np.bool_)
        is_kept[0] = True
        is_kept[of_row[: is_row.size][is_row]] = True
        numbers = (np.cumsum(is_kept) - 1).astype(np.uint32)
        of_row[: is_row.size][is_row] = numbers[of_row[: is_row.size][is_row]]
        keys = self._keys[: known * dims].reshape(known, dims)[is_kept]
        for k in range(dims):
            codes = self._value_codes[k * self._values_numbered : (k + 1) * self._values_numbered]
            kept = np.unique(keys[:, k])
            kept = kept[kept >= FIRST_VALUE]
            renumbered = np.arange(self._values_numbered, dtype=np.uint16)
            renumbered[kept] = FIRST_VALUE + np.arange(kept.size)
            keys[:, k] = renumbered[keys[:, k]]
            codes[FIRST_VALUE : FIRST_VALUE + kept.size] = codes[kept].copy()
            codes[FIRST_VALUE + kept.size :] = -1
            self._counts[k] = kept.size
        plays = self._plays[:known][is_kept]
        self._keys[: keys.size], self._plays[: plays.size] = keys.reshape(-1), plays
        self._state[COMBINATIONS] = plays.size
        self._is_named[:] = False
        self._rehash()

    def _rehash(self) -> None:
        self._key_slots.fill(layout.EMPTY)
        self._value_slots.fill(0)
        kernel.fill_key_slots(self.cohorts)
        if self._has_log_time:
            kernel.fill_value_slots(self.cohorts)

    # --- dictionary codes ---------------------------------------------------------------------------------------------
    def live_codes(self, dimension: int) -> I32:
        """The codes of a coded dimension that are in use, in any order. Of a plain file all below the limit: so those stay the first ones."""
        if not self.is_on or dimension not in self._dims:
            return np.zeros(0, np.int32)
        if not self._has_log_time:
            return np.arange(self._values_max, dtype=np.int32)
        return self._admitted(self._dims.tolist().index(dimension)).copy()

    def remap(self, dimension: int, mapping: I32) -> None:
        """Replace each code of a dimension by ``mapping[code]`` (>= 0 for all in use)."""
        if self.has_windows and dimension in self._dims:
            codes = self._admitted(self._dims.tolist().index(dimension))
            codes[:] = mapping[codes]
            self._value_slots.fill(0)
            kernel.fill_value_slots(self.cohorts)

    def _admitted(self, k: int) -> I32:
        first = k * self._values_numbered + FIRST_VALUE
        return self._value_codes[first : first + int(self._counts[k])]

    # --- snapshot -----------------------------------------------------------------------------------------------------
    def used(self, rows: int) -> Arrays:
        """The used beginnings of everything that a snapshot copies (``cohort_snapshot``); views, but for the values: a few kB."""
        if not self.is_on:
            return cohort_snapshot.none()
        facts, starts, known = int(self._state[FACTS]), int(self._state[STARTS]), int(self._state[COMBINATIONS])
        return {
            "cohort_rules": self._rules, "cohort_state": self._state, "cohort_rows": self.cohorts.of_row[:rows], "cohort_counts": self._counts,
            "cohort_values": np.concatenate([self._admitted(k) for k in range(len(self._dims))]), "cohort_keys": self._keys[: known * len(self._dims)],
            "cohort_facts": self._facts[: facts * FACT_WORDS], "cohort_fact_keys": self._fact_combinations[:facts],
            "cohort_starts": self._starts[: starts * START_WORDS],
        }  # fmt: skip

    def used_bytes(self, rows: int) -> list[int]:
        """The sizes of what ``used`` gives. Another thread may ask."""
        if not self.is_on:
            return [array.nbytes for array in cohort_snapshot.none().values()]
        facts, starts, known = int(self._state[FACTS]), int(self._state[STARTS]), int(self._state[COMBINATIONS])
        values, keys = int(self._counts.sum()) * 4, known * self._dims.size * 2
        fixed = [self._rules.nbytes, self._state.nbytes, self._counts.nbytes]
        return [*fixed, rows * 4, values, keys, facts * FACT_WORDS * 8, facts * 4, starts * START_WORDS * 8]

    def restore(self, arrays: Arrays, table: layout.Table) -> layout.Table:
        """Go on from a snapshot, into fresh memory. ``table`` has its rows and codes; returns it with its cohorts.

        Where the snapshot counted none, or by other rules, sessions are of the cohorts of their dimensions last seen, and what was
        counted of the window under way is lost. Codes are those of the snapshot: ``remap`` follows.
        """
        if not self.is_on:
            return table._replace(cohorts=self.cohorts)
        if self._has_log_time and np.array_equal(arrays["cohort_rules"], self._rules):
            self._take_over(arrays, _is_used(table))
        else:
            self._begin_anew(arrays)
            table = self._adopt(table)
        table = table._replace(cohorts=self.cohorts)
        kernel.count_plays(table)
        return table

    def _take_over(self, arrays: Arrays, is_row: npt.NDArray[np.bool_]) -> None:
        self._state[:] = arrays["cohort_state"]
        known, dims, rows = int(self._state[COMBINATIONS]), len(self._dims), arrays["cohort_rows"]
        if (rows[is_row] >= known).any():
            raise CheckpointDamaged("a session has a combination of values that its cohorts do not know")
        room = COMBINATIONS_MIN
        while room < min(known + layout.CHUNK, self._combinations_max):
            room = min(room * GROWTH, self._combinations_max)
        self._allocate(room)
        self._counts[:] = arrays["cohort_counts"]
        self._value_codes.fill(-1)
        for k, end in enumerate(np.cumsum(self._counts).tolist()):
            self._admitted(k)[:] = arrays["cohort_values"][end - int(self._counts[k]) : end]
        self._keys[: known * dims] = arrays["cohort_keys"]
        combinations = arrays["cohort_fact_keys"]
        self._facts[: arrays["cohort_facts"].size] = arrays["cohort_facts"]
        self._fact_combinations[: combinations.size], self._fact_windows[: combinations.size] = combinations, self._state[WINDOW]
        self._places[combinations] = np.arange(combinations.size)
        self._state[FACTS], self._state[STARTS] = combinations.size, arrays["cohort_starts"].size // START_WORDS
        self._starts = np.zeros(max(self._starts.size, 2 * arrays["cohort_starts"].size), np.int64)
        self._starts[: arrays["cohort_starts"].size] = arrays["cohort_starts"]
        self._bind()
        self.cohorts.of_row[: rows.size] = rows
        self._rehash()

    def _begin_anew(self, arrays: Arrays) -> None:
        log_time = int(arrays["state"][layout.LOG_TIME])
        if self._has_log_time and log_time > 0:
            self.begin_window(log_time // WINDOW_MS)

    def _adopt(self, table: layout.Table) -> layout.Table:
        first, rows = 0, int(table.state[layout.ROWS])
        while first < rows:
            table = table._replace(cohorts=self.cohorts)
            first = int(kernel.adopt(table, first))
            if first < rows:
                self.grow_combinations()
        return table


def _is_used(table: layout.Table) -> npt.NDArray[np.bool_]:
    """Of each row up to the last, whether a session has it."""
    rows = int(table.state[layout.ROWS])
    return np.asarray(table.shorts[: rows * layout.ROW_SHORTS].reshape(rows, layout.ROW_SHORTS)[:, layout.FLAGS] != 0)
