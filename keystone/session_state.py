"""The memory of a session table: rows, side rows, strings and index, growing in place; snapshot and restore as arrays.

Rows, side rows and strings lie in anonymous mappings: pages cost nothing until touched, and growth moves page tables,
not bytes. A freed row is used again before a new one, so memory follows the most sessions ever active at once.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from keystone.config import DetectionConfig, SessionConfig
from keystone.errors import SessionsFull, UsageError
from keystone.events import DICTIONARY_COLUMNS, FIRST_DIMENSION, I32, I64
from keystone.kernels import session_rows as layout
from keystone.kernels import sessions as kernel
from keystone.kernels.arena import CLASSES, NONE, UNIT

ROWS_MIN: Final = 1 << 12
SLOTS_MIN: Final = 1 << 13  # of the index; it doubles above 5/8 full: 1.75 slots looked at for a hit at most
SLOTS_MAX: Final = 1 << 30  # leaves 2 bits of key in a slot
SIDES_MIN: Final = 1 << 10
ARENA_MIN: Final = 1 << 16
GROWTH: Final = 8  # of mappings: room costs nothing untouched, but each move splits their huge pages
WASTE_MIN: Final = 1 << 20  # freed arena units (4 MB) below which compaction is not worth a pass
SNAPSHOT_FORMAT: Final = 1
DIMENSIONS: Final = len(DICTIONARY_COLUMNS) - FIRST_DIMENSION


class DictionaryStore(Protocol):
    """The strings behind the codes of DICTIONARY_COLUMNS; codes are dense from 0 in each column."""

    def text(self, column: int, code: int) -> str:
        """The string behind a code."""

    def intern(self, column: int, value: bytes) -> int:
        """The code of a UTF-8 string, new if need be."""


class Mapping:
    """Anonymous memory, zero until written, that grows in place."""

    def __init__(self, size_bytes: int) -> None:
        self._map = _anonymous(size_bytes)

    def view(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.frombuffer(self._map, dtype)

    def grow(self, size_bytes: int) -> None:
        """To at least ``size_bytes``. Views made before are dead: drop them first, else the bytes are copied."""
        size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._map.resize(size_bytes)
        except (BufferError, SystemError, OSError, ValueError):  # a view lives, or the system cannot
            wider = _anonymous(size_bytes)
            np.frombuffer(wider, np.uint8)[: len(self._map)] = np.frombuffer(self._map, np.uint8)
            self._map = wider
        _ask_huge_pages(self._map)


def _anonymous(size_bytes: int) -> mmap.mmap:
    size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    created = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ask_huge_pages(created)
    return created


def _ask_huge_pages(mapping: mmap.mmap) -> None:
    # Random access to 1 GB of 4 KB pages misses the translation cache at every event; 2 MB pages do not.
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None and len(mapping) >= 1 << 21:
        with contextlib.suppress(OSError):  # a kernel without them: slower, nothing else
            mapping.madvise(advice)


class TableMemory:
    """Memory of one table. ``table`` is what kernels take; it is another object after every growth: fetch it anew."""

    def __init__(self, session: SessionConfig, detection: DetectionConfig, *, has_log_time: bool, sessions_expected: int) -> None:
        _check_limits(session, detection)
        self.sessions_max = session.sessions_max
        watches = detection.open_stall_ms <= session.timeout_ms  # else the timeout comes first, always
        self._rules = (session.timeout_ms, session.grace_ms, detection.open_stall_ms if watches else -1, detection.loop_threshold, int(has_log_time))
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

    def _bind(self) -> None:
        row_words = self._rows.view(np.int64)[: self._rows_max * layout.ROW_WORDS]
        side = self._side.view(np.int64)
        self.table = layout.Table(
            row_words, row_words.view(np.uint32), row_words.view(np.uint16), self._high.view(np.uint16)[: self._high_rows * layout.DIMS],
            side[: side.size // layout.SIDE_WORDS * layout.SIDE_WORDS], self._arena.view(np.uint8), self._arena.view(np.uint32),
            self._index, self._blocks, self._superblocks, self._free, self.state, self._candidates, *self._rules,
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
    def make_room(self, reason: int) -> None:
        """Do what a kernel asked for by its REASON (the ROOM_ ones but ROOM_OUT). Raises ``SessionsFull``."""
        grow: dict[int, Callable[[], None]] = {
            layout.ROOM_ROWS: self._grow_rows,
            layout.ROOM_INDEX: self._grow_index,
            layout.ROOM_SIDES: self._grow_sides,
            layout.ROOM_ARENA: self._grow_arena,
            layout.ROOM_HIGH: self._add_high,
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
        return used + self._index.nbytes + self._blocks.nbytes + self._superblocks.nbytes + min(rows, self._high_rows) * layout.DIMS * 2

    # --- dictionary codes ---------------------------------------------------------------------------------------
    def live_codes(self, dimension: int) -> npt.NDArray[np.bool_]:
        """Which codes of a coded dimension are in use. Shape (highest + 1,)."""
        size = int(kernel.mark_codes(self.table, dimension, np.zeros(0, np.uint8)))
        is_live = np.zeros(size, np.uint8)
        kernel.mark_codes(self.table, dimension, is_live)
        return is_live.astype(np.bool_)

    def remap(self, dimension: int, mapping: I32) -> None:
        """Replace each code by ``mapping[code]``; every live code must have one >= 0."""
        if mapping.size and int(mapping.max()) >= layout.U16 and not self._high_rows:
            self.make_room(layout.ROOM_HIGH)
        kernel.change_codes(self.table, dimension, np.ascontiguousarray(mapping, np.int32))

    # --- snapshot -----------------------------------------------------------------------------------------------
    def snapshot(self, dictionaries: DictionaryStore) -> dict[str, npt.NDArray[Any]]:
        """Everything as arrays of their own, dictionary strings included."""
        state, rows = self.state, self.active
        words, side = np.zeros(rows * layout.ROW_WORDS, np.int64), np.zeros(int(state[layout.SIDES_USED]) * layout.SIDE_WORDS, np.int64)
        high = np.zeros(rows * layout.DIMS if self._high_rows else 0, np.uint16)
        units = np.zeros(max(1, int(state[layout.UNITS] - state[layout.UNITS_FREE])), np.uint32)
        counters = state.copy()
        counters[:] = 0
        counters[[layout.ROW_FREE, layout.SIDE_FREE]] = NONE
        free: I64 = np.full(CLASSES, NONE, np.int64)
        copy = self.table._replace(
            words=words, halves=words.view(np.uint32), shorts=words.view(np.uint16), high=high, side=side, arena=units.view(np.uint8), units=units,
            free=free, state=counters,
        )  # fmt: skip
        kernel.gather(self.table, copy)
        for name in _KEPT_COUNTERS:
            counters[name] = state[name]
        arrays: dict[str, npt.NDArray[Any]] = {"format": np.array([SNAPSHOT_FORMAT], np.int64), "state": counters}
        arrays |= {"rows": words, "side": side, "high": high, "strings": units}
        for dimension in range(DIMENSIONS):
            arrays |= self._dictionary(dimension, dictionaries)
        return arrays

    def _dictionary(self, dimension: int, dictionaries: DictionaryStore) -> dict[str, npt.NDArray[Any]]:
        codes = np.flatnonzero(self.live_codes(dimension)).astype(np.int32)
        values = [dictionaries.text(FIRST_DIMENSION + dimension, int(code)).encode() for code in codes]
        ends = np.cumsum([len(value) for value in values], dtype=np.int64)
        name = DICTIONARY_COLUMNS[FIRST_DIMENSION + dimension]
        return {f"codes_{name}": codes, f"ends_{name}": ends, f"text_{name}": np.frombuffer(b"".join(values), np.uint8).copy()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]], dictionaries: DictionaryStore) -> None:
        """Replace everything by a snapshot's content."""
        if int(arrays["format"][0]) != SNAPSHOT_FORMAT:
            raise UsageError(f"the snapshot has format {int(arrays['format'][0])}, this version reads {SNAPSHOT_FORMAT}: replay the log instead")
        words, side, high, units = arrays["rows"], arrays["side"], arrays["high"], arrays["strings"]
        rows = words.size // layout.ROW_WORDS
        if rows > self.sessions_max:
            raise SessionsFull(f"the snapshot holds {rows:,} sessions, session.sessions_max is {self.sessions_max:,}: raise it")
        del self.table
        sides = side.size // layout.SIDE_WORDS + SIDES_MIN
        self._allocate(max(ROWS_MIN, rows + layout.CHUNK), sides, units.size + ARENA_MIN, _slots_for(rows + layout.CHUNK))
        if high.size:
            self._add_high()
        self.state[:] = arrays["state"]
        self._bind()
        table = self.table
        table.words[: words.size], table.side[: side.size], table.high[: high.size], table.units[: units.size] = words, side, high, units
        kernel.fill_index(table)
        kernel.wake_all(table)
        for dimension in range(DIMENSIONS):
            self._translate(dimension, arrays, dictionaries)

    def _translate(self, dimension: int, arrays: dict[str, npt.NDArray[Any]], dictionaries: DictionaryStore) -> None:
        """From the snapshot's codes to those of this process."""
        name = DICTIONARY_COLUMNS[FIRST_DIMENSION + dimension]
        codes, ends, text = arrays[f"codes_{name}"], arrays[f"ends_{name}"], arrays[f"text_{name}"].tobytes()
        if not codes.size:
            return
        mapping: I32 = np.full(int(codes.max()) + 1, -1, np.int32)
        start = 0
        for code, end in zip(codes.tolist(), ends.tolist(), strict=True):
            mapping[code] = dictionaries.intern(FIRST_DIMENSION + dimension, text[start:end])
            start = end
        self.remap(dimension, mapping)


#: Counters that a copy takes over as they are; ``gather`` counts the others anew.
_KEPT_COUNTERS: Final = (layout.LONGEST_DEVICE, layout.LONGEST_SESSION, layout.LONGEST_USER, layout.LOG_TIME, layout.SWEPT_AT)


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
