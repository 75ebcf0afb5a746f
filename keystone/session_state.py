"""The memory of a session table: rows, side rows, strings and index, growing in place; snapshot and restore as arrays.

Rows, side rows and strings lie in anonymous mappings: pages cost nothing until touched, and growth moves page tables,
not bytes. A freed row is used again before a new one, so memory follows the most sessions ever active at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from keystone import session_snapshot
from keystone.cohort_state import CohortMemory
from keystone.config import CohortsConfig, DetectionConfig, SessionConfig
from keystone.errors import SessionsFull, UsageError
from keystone.events import I32, I64
from keystone.kernels import session_rows as layout
from keystone.kernels import sessions as kernel
from keystone.kernels.arena import CLASSES, NONE, UNIT
from keystone.mappings import ALIGNMENT, Mapping, Room
from keystone.session_snapshot import SCHEMA, Arrays, DictionaryStore

ROWS_MIN: Final = 1 << 12
SLOTS_MIN: Final = 1 << 13  # of the index; it doubles above 5/8 full: 1.75 slots looked at for a hit at most
SLOTS_MAX: Final = 1 << 30  # leaves 2 bits of key in a slot
SIDES_MIN: Final = 1 << 10
ARENA_MIN: Final = 1 << 16
GROWTH: Final = 8  # of mappings: room costs nothing untouched, but each move splits their huge pages
WASTE_MIN: Final = 1 << 20  # freed arena units (4 MB) below which compaction is not worth a pass


class TableMemory:
    """Memory of one table. ``table`` is what kernels take; it is another object after every growth: fetch it anew."""

    def __init__(
        self, session: SessionConfig, detection: DetectionConfig, cohorts: CohortsConfig | None, *, has_log_time: bool, sessions_expected: int
    ) -> None:
        _check_limits(session, detection)
        self.sessions_max = session.sessions_max
        watches = detection.open_stall_ms <= session.timeout_ms  # else the timeout comes first, always
        self._rules = (session.timeout_ms, session.grace_ms, detection.open_stall_ms if watches else -1, detection.loop_threshold, int(has_log_time))
        self._new_cohorts = partial(CohortMemory, cohorts, timeout_ms=session.timeout_ms, has_log_time=has_log_time)
        self._rows_max = 0
        self._allocate(max(ROWS_MIN, sessions_expected + layout.CHUNK), SIDES_MIN, ARENA_MIN, _slots_for(sessions_expected + layout.CHUNK))
        self._bind()

    def _allocate(self, rows: int, sides: int, units: int, slots: int) -> None:
        self._rows_max, self._high_rows = rows, 0
        self._rows = Mapping(rows * layout.ROW_BYTES)
        self._side = Mapping(sides * layout.SIDE_WORDS * 8)
        self._arena = Mapping(units * UNIT)
        self._high = Mapping(1)
        self._index: npt.NDArray[np.uint32] = np.full(slots, layout.EMPTY, np.uint32)
        self._blocks: I64 = np.full(_blocks_for(rows), layout.NEVER, np.int64)
        self._superblocks: I64 = np.full((self._blocks.size >> layout.SUPER_SHIFT) + 1, layout.NEVER, np.int64)
        self._free: I64 = np.full(CLASSES, NONE, np.int64)
        self.state: I64 = np.zeros(layout.STATE_WORDS, np.int64)
        self.state[[layout.ROW_FREE, layout.SIDE_FREE]] = NONE
        self._candidates: I64 = np.zeros(layout.CHUNK, np.int64)
        self.cohorts = self._new_cohorts(rows=rows)

    def _bind(self) -> None:
        row_words = self._rows.view(np.int64)[: self._rows_max * layout.ROW_WORDS]
        side = self._side.view(np.int64)
        self.table = layout.Table(
            row_words, row_words.view(np.uint32), row_words.view(np.uint16), self._high.view(np.uint16)[: self._high_rows * layout.DIMS],
            side[: side.size // layout.SIDE_WORDS * layout.SIDE_WORDS], self._arena.view(np.uint8), self._arena.view(np.uint32),
            self._index, self._blocks, self._superblocks, self._free, self.state, self._candidates, *self._rules, self.cohorts.cohorts,
        )  # fmt: skip

    def clear(self) -> None:
        """Forget every session at once; the memory stays."""
        self.state[[layout.ACTIVE, layout.ROWS, layout.SIDES, layout.SIDES_USED, layout.UNITS, layout.UNITS_FREE]] = 0
        self.state[[layout.ROW_FREE, layout.SIDE_FREE]] = NONE
        self._index.fill(layout.EMPTY)
        self._blocks.fill(layout.NEVER)
        self._superblocks.fill(layout.NEVER)
        self._free.fill(NONE)

    # --- growth -------------------------------------------------------------------------------------------------
    def make_room(self, reason: int, dictionaries: DictionaryStore) -> None:
        """Do what a kernel asked for by its REASON (the ROOM_ ones but ROOM_OUT). Raises ``SessionsFull``."""
        grow: dict[int, Callable[[], None]] = {
            layout.ROOM_ROWS: self._grow_rows,
            layout.ROOM_INDEX: self._grow_index,
            layout.ROOM_SIDES: self._grow_sides,
            layout.ROOM_ARENA: self._grow_arena,
            layout.ROOM_HIGH: self._add_high,
            layout.ROOM_COHORTS: partial(self.cohorts.make_room, dictionaries),
        }
        grow[reason]()
        self._bind()

    def _release(self) -> None:
        del self.table  # its views would keep the mappings from growing in place

    def _grow_rows(self) -> None:
        if self.active > self.sessions_max:
            raise SessionsFull(
                f"{self.active:,} sessions are active in one partition, session.sessions_max is {self.sessions_max:,}: raise it, or take more partitions"
            )
        self._release()
        self._rows_max = min(self._rows_max * GROWTH, self.sessions_max + 2 * layout.CHUNK)
        self._rows.grow(self._rows_max * layout.ROW_BYTES)
        if self._high_rows:
            self._high_rows = self._rows_max
            self._high.grow(self._rows_max * layout.DIMS * 2)
        self.cohorts.grow_rows(self._rows_max)
        more = np.full(_blocks_for(self._rows_max), layout.NEVER, np.int64)
        more[: self._blocks.size] = self._blocks
        over = np.full((more.size >> layout.SUPER_SHIFT) + 1, layout.NEVER, np.int64)
        over[: self._superblocks.size] = self._superblocks
        self._blocks, self._superblocks = more, over

    def _grow_index(self) -> None:
        if self._index.size >= SLOTS_MAX:
            raise SessionsFull(f"{self.active:,} sessions are active in one partition: take more partitions")
        self._index = np.full(self._index.size * 2, layout.EMPTY, np.uint32)
        self._bind()
        kernel.fill_index(self.table)

    def _grow_sides(self) -> None:
        size = self.table.side.nbytes * GROWTH
        self._release()
        self._side.grow(size)

    def _grow_arena(self) -> None:
        if 2 * int(self.state[layout.UNITS_FREE]) > int(self.state[layout.UNITS]) and int(self.state[layout.UNITS_FREE]) > WASTE_MIN:
            self._compact_arena()
            return
        longest = int(self.state[[layout.LONGEST_DEVICE, layout.LONGEST_SESSION, layout.LONGEST_USER]].sum())
        size = GROWTH * self.table.arena.nbytes + 2 * layout.CHUNK_OF_LONG * (longest + layout.LONG_BYTES)
        self._release()
        self._arena.grow(size)

    def _compact_arena(self) -> None:
        """More than half is free in sizes that are no longer asked for: copy the rest into a new arena."""
        old = self.table
        size = old.arena.nbytes
        self._arena = Mapping(size)
        self._free = np.full(CLASSES, NONE, np.int64)
        self.state[[layout.UNITS, layout.UNITS_FREE]] = 0
        self._bind()
        kernel.move_blobs(old, self.table)

    def _add_high(self) -> None:
        self._high_rows = self._rows_max
        self._high = Mapping(self._rows_max * layout.DIMS * 2)

    # --- figures ------------------------------------------------------------------------------------------------
    @property
    def active(self) -> int:
        return int(self.state[layout.ACTIVE])

    @property
    def state_bytes(self) -> int:
        """Bytes ever written: rows, side rows and strings up to their highest place, index, timer bounds."""
        rows = int(self.state[layout.ROWS])
        used = rows * layout.ROW_BYTES + int(self.state[layout.SIDES]) * layout.SIDE_WORDS * 8 + int(self.state[layout.UNITS]) * UNIT
        bounds = self._blocks.nbytes + self._superblocks.nbytes
        return used + self._index.nbytes + bounds + min(rows, self._high_rows) * layout.DIMS * 2 + self.cohorts.state_bytes(rows)

    # --- dictionary codes ---------------------------------------------------------------------------------------
    def live_codes(self, dimension: int) -> npt.NDArray[np.bool_]:
        """Which codes of a coded dimension are in use. Shape (highest + 1,)."""
        held = self.cohorts.live_codes(dimension)
        size = max(int(kernel.mark_codes(self.table, dimension, np.zeros(0, np.uint8))), 1 + int(held.max(initial=-1)))
        is_live = np.zeros(size, np.uint8)
        kernel.mark_codes(self.table, dimension, is_live)
        is_live[held] = 1
        return is_live.astype(np.bool_)

    def remap(self, dimension: int, mapping: I32) -> None:
        """Replace each code by ``mapping[code]``; every live code must have one >= 0."""
        if mapping.size and int(mapping.max()) >= layout.U16 and not self._high_rows:
            self._add_high()
            self._bind()
        kernel.change_codes(self.table, dimension, np.ascontiguousarray(mapping, np.int32))
        self.cohorts.remap(dimension, mapping)

    # --- snapshot -----------------------------------------------------------------------------------------------
    def snapshot(self, dictionaries: DictionaryStore, room: Room | None = None) -> Arrays:
        """Everything as arrays (``session_snapshot``): the used beginnings of the memory copied as they are, into ``room``.

        No pass over sessions. Strings are views of what only grows.
        """
        arrays = (room or Room()).copies(self._used())
        arrays["state"][layout.APPLIED :] = 0  # of one call only
        strings = dictionaries.strings()
        arrays |= {"text": strings.text, "text_sizes": strings.sizes, "text_columns": strings.columns, "text_codes": strings.codes}
        return arrays | {"schema": np.array([SCHEMA], np.int64)}

    @property
    def snapshot_bytes(self) -> int:
        """Room that a snapshot takes now. From counts alone: another thread may ask while memory grows, when there are no views of it."""
        rows, sides, units = (int(self.state[place]) for place in (layout.ROWS, layout.SIDES, layout.UNITS))
        own = (self.state.nbytes, self._free.nbytes, rows * layout.ROW_BYTES, sides * layout.SIDE_WORDS * 8, min(rows, self._high_rows) * layout.DIMS * 2)
        sizes = (*own, units * UNIT, *self.cohorts.used_bytes(rows))
        return sum(sizes) + len(sizes) * ALIGNMENT

    def _used(self) -> Arrays:
        """The used beginnings of everything that a snapshot copies; views."""
        state, table = self.state, self.table
        rows, sides, units = (int(state[place]) for place in (layout.ROWS, layout.SIDES, layout.UNITS))
        return {
            "state": state, "free": self._free, "rows": table.words[: rows * layout.ROW_WORDS], "side": table.side[: sides * layout.SIDE_WORDS],
            "high": table.high[: rows * layout.DIMS], "arena": table.units[:units],
            **self.cohorts.used(rows),
        }  # fmt: skip

    def restore(self, arrays: Arrays, dictionaries: DictionaryStore) -> None:
        """Replace everything by a snapshot's content, its codes by those of ``dictionaries``; wake all timers."""
        if "schema" not in arrays or int(arrays["schema"][0]) != SCHEMA:
            raise UsageError(f"the snapshot is not of schema {SCHEMA}, the one that this version reads: replay the log instead")
        session_snapshot.check(arrays)
        state = arrays["state"]
        rows, sides, units = (int(state[place]) for place in (layout.ROWS, layout.SIDES, layout.UNITS))
        active = int(state[layout.ACTIVE])
        if active > self.sessions_max:
            raise SessionsFull(f"the snapshot holds {active:,} sessions, session.sessions_max is {self.sessions_max:,}: raise it")
        del self.table
        self._allocate(max(ROWS_MIN, rows + layout.CHUNK), sides + SIDES_MIN, units + ARENA_MIN, _slots_for(rows + layout.CHUNK))
        if arrays["high"].size:
            self._add_high()
        self.state[:], self._free[:] = state, arrays["free"]
        self._bind()
        table = self.table
        for memory, name in ((table.words, "rows"), (table.side, "side"), (table.high, "high"), (table.units, "arena")):
            memory[: arrays[name].size] = arrays[name]
        table = self.table = self.cohorts.restore(arrays, table)
        kernel.fill_index(table)
        kernel.wake_all(table)
        for dimension, mapping in enumerate(session_snapshot.mappings(table, arrays, dictionaries)):
            self.remap(dimension, mapping)


def _slots_for(sessions: int) -> int:
    return max(SLOTS_MIN, 1 << (sessions * 8 // 5).bit_length())


def _blocks_for(rows: int) -> int:
    return -(-rows // layout.BLOCK_ROWS)


def _check_limits(session: SessionConfig, detection: DetectionConfig) -> None:
    durations = {
        "session.timeout_ms": session.timeout_ms,
        "session.grace_ms": session.grace_ms,
        "detection.open_stall_ms": detection.open_stall_ms,
    }
    for name, value in durations.items():
        if not 0 <= value < layout.DURATION_LIMIT_MS:
            raise UsageError(f"{name} = {value} must be at least 0 and below {layout.DURATION_LIMIT_MS} (12 days)")
