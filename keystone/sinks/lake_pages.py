"""Batches to pages: the codes of a row group, and the call of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

from keystone.events import DICTIONARY_COLUMNS, I32, I64, U8, EventBatch
from keystone.kernels import lake as kernel
from keystone.kernels import lake_rows
from keystone.sinks.lake_stage import batch_text_bytes, flat, texts

#: A column with more codes than this gets, in each row group, a dictionary of the values used there. Fewer are written whole:
#: 256 strings are ~3 kB a row group.
WHOLE_DICTIONARY_MAX: Final = 256
ARENAS_KEPT: Final = 16  # page buffers waiting to be used again
ARENA_KEPT_BYTES_MAX: Final = 4 << 20


class DictionaryValues(Protocol):
    """The strings behind the codes of ``EventBatch.codes``. Codes are dense from 0 and never change their meaning."""

    def arrow(self, column: int) -> pa.Array:
        """All strings of row ``column`` of the codes, by code, as a string array without nulls."""

    def size(self, column: int) -> int:
        """Number of codes of the column."""


@dataclass(frozen=True, slots=True)
class GroupValues:
    """The dictionaries of a row group: ``strings`` by row of the codes, which of them ``is_local``, and the ``integers``."""

    strings: list[pa.Array]
    is_local: list[bool]
    integers: I64


class GroupCodes:
    """The dictionary codes of one row group: which are taken as they are, and which are renumbered in order of appearance."""

    def __init__(self, dictionaries: DictionaryValues) -> None:
        self.dictionaries = dictionaries
        columns = len(DICTIONARY_COLUMNS)
        self.is_local: U8 = np.zeros(columns, np.uint8)
        self.known = kernel.new_known()
        self._code_max = np.full(columns, -1, np.int64)
        self._seen: dict[int, I32] = {}
        self._order: dict[int, I32] = {}
        self._count: dict[int, int] = {}
        self._choose()

    def _choose(self) -> None:
        for column in range(len(DICTIONARY_COLUMNS)):
            self.is_local[column] = self.dictionaries.size(column) > WHOLE_DICTIONARY_MAX
            self._count[column] = 0

    def localise(self, codes: I32, stride: int, rows: int, local: I32, local_stride: int) -> None:
        """Fill the rows of ``local`` for the columns that are renumbered."""
        for column in np.flatnonzero(self.is_local).tolist():
            size, count = self.dictionaries.size(column), self._count[column]
            self._seen[column] = seen = _grown(self._seen.get(column), size, -1)
            self._order[column] = order = _grown(self._order.get(column), min(size, count + rows), 0)
            self._count[column] = lake_rows.localise(codes, column * stride, rows, seen, order, count, local, column * local_stride)

    def saw(self, table: I64) -> None:
        """Note the highest code of each column's page."""
        np.maximum(self._code_max, table[kernel.CODE_PLACE, kernel.CODE_MAX], out=self._code_max)

    def end(self) -> GroupValues:
        """What the codes of the row group's pages stand for. Starts the next row group."""
        strings = self._strings()
        integers = self.known.values[: int(self.known.state[kernel.KNOWN_COUNT])].copy()
        self.known = kernel.new_known()
        is_local = self.is_local.astype(bool).tolist()
        self._code_max[:] = -1
        self._choose()
        return GroupValues(strings, is_local, integers)

    def _strings(self) -> list[pa.Array]:
        found = []
        for column in range(len(DICTIONARY_COLUMNS)):
            strings = self.dictionaries.arrow(column)
            if self.is_local[column]:
                count = self._count[column]
                order = self._order.get(column, np.zeros(0, np.int32))
                strings = strings.take(pa.array(order[:count]))
                if count:
                    lake_rows.forget(self._seen[column], order, count)
            else:
                strings = strings.slice(0, int(self._code_max[column]) + 1)
            found.append(strings)
        return found


def _grown(array: I32 | None, size: int, fill: int) -> I32:
    if array is not None and array.size >= size:
        return array
    grown: I32 = np.full(max(2 * size, 1024), fill, np.int32)
    if array is not None:
        grown[: array.size] = array
    return grown


@dataclass(slots=True)
class Pages:
    """One page of every column. ``out`` belongs to the pool it came from."""

    rows: int
    out: U8
    table: I64
    bytes: int


class PageEncoder:
    """Calls the kernel; owns its working room and a pool of output buffers. One thread calls ``encode``, any ``release``."""

    def __init__(self, *, has_log_time: bool) -> None:
        self._has_log_time = int(has_log_time)
        self._rows = 0
        self._scratch = kernel.new_scratch(0)
        self._local: I32 = np.zeros(0, np.int32)
        self._free: list[U8] = []

    def encode(self, batch: EventBatch, codes: GroupCodes) -> Pages:
        """The pages of a whole batch (at least one row)."""
        rows = batch.rows
        self._make_room(rows)
        ints, int_stride = flat(batch.ints)
        coded, code_stride = flat(batch.codes)
        codes.localise(coded, code_stride, rows, self._local, self._rows)
        out = self._arena(kernel.page_bytes_max(rows, batch_text_bytes(batch)))
        table = np.zeros((kernel.COLUMNS, kernel.TABLE_WORDS), np.int64)
        size = kernel.encode_pages(
            rows, batch.partition, self._has_log_time, batch.ts, batch.offset, batch.append_ts_ms, batch.line, ints, int_stride,
            coded, code_stride, self._local, self._rows, codes.is_local, batch.fatal, batch.duplicate, batch.late,
            *texts(batch), kernel.CODE_PLACE, kernel.INT_PLACE, self._scratch, codes.known, out, table,
        )  # fmt: skip
        codes.saw(table)
        return Pages(rows, out, table, int(size))

    def release(self, pages: Pages) -> None:
        """Give the buffer back."""
        if len(self._free) < ARENAS_KEPT and pages.out.size <= ARENA_KEPT_BYTES_MAX:
            self._free.append(pages.out)

    def _arena(self, size: int) -> U8:
        try:
            arena = self._free.pop()
        except IndexError:
            return np.empty(size + size // 4, np.uint8)
        return arena if arena.size >= size else np.empty(size + size // 4, np.uint8)

    def _make_room(self, rows: int) -> None:
        if rows > self._rows:
            self._rows = rows
            self._scratch = kernel.new_scratch(rows)
            self._local = np.zeros(len(DICTIONARY_COLUMNS) * rows, np.int32)
