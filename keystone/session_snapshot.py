"""The state of a session table as arrays: what a snapshot holds, how it is packed, and how codes are translated.

``schema`` (the number below) · ``partition`` · ``state`` (the table's counters) · ``free`` (the arena's free lists) · ``rows`` ``side`` ``high``
``arena`` (the used beginning of each part of the table's memory, places that are free included) · ``text`` ``text_sizes``
``text_columns`` ``text_codes`` (strings of the dictionaries, end to end) · what ``cohort_snapshot`` tells of. All are one-dimensional.
The index and the timers' bounds follow from the rows.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from keystone import cohort_snapshot
from keystone.errors import CheckpointDamaged
from keystone.events import DICTIONARY_COLUMNS, FIRST_DIMENSION, I32, I64, U8
from keystone.kernels import cohorts
from keystone.kernels import session_rows as layout
from keystone.kernels import sessions as kernel
from keystone.kernels.arena import CLASSES, NONE

#: What the arrays mean. Another layout of rows, side rows, blobs or counters, or other dimensions: the next number (a test
#: fails until then), and what reads the older one in ``checkpoint.MIGRATIONS``.
SCHEMA: Final = 2  # 1: without cohorts; ``stall_start`` of a side row without an open run told nothing
DIMENSIONS: Final = len(DICTIONARY_COLUMNS) - FIRST_DIMENSION
DENSE_ROWS_MIN: Final = 64  # below, holes are not worth a pass
Arrays = dict[str, npt.NDArray[Any]]

_LAYOUT: Final = {
    "schema": np.int64, "partition": np.int64, "state": np.int64, "free": np.int64, "rows": np.int64, "side": np.int64, "high": np.uint16, "arena": np.uint32,
    "text": np.uint8, "text_sizes": np.int64, "text_columns": np.int64, "text_codes": np.int64,
    **cohort_snapshot.LAYOUT,
}  # fmt: skip
#: Counters that a gathered copy takes over as they are; ``gather`` counts the others anew.
_KEPT_COUNTERS: Final = (layout.LONGEST_DEVICE, layout.LONGEST_SESSION, layout.LONGEST_USER, layout.LOG_TIME, layout.SWEPT_AT)


class Strings(NamedTuple):
    """Strings of dictionaries: of ``text`` (UTF-8, end to end) the next ``sizes[i]`` bytes are ``codes[i]`` of ``columns[i]``."""

    text: U8
    sizes: I64
    columns: I64
    codes: I64


class DictionaryStore(Protocol):
    """The strings behind the codes of DICTIONARY_COLUMNS; codes are dense from 0 in each column."""

    def text(self, column: int, code: int) -> str:
        """The string behind a code."""

    def intern(self, column: int, value: bytes) -> int:
        """The code of a UTF-8 string, new if need be."""

    def strings(self) -> Strings:
        """All strings so far. What is returned never changes; it costs no pass over them."""


def packed(arrays: Arrays) -> Arrays:
    """The same state in less room, for keeping: without rows and strings that nobody uses.

    ``arrays`` are a snapshot's own, unchanged since; those of the result may be the same ones. Takes a pass over the rows,
    and a copy of them where more than half of the rows or of the arena is free: not while the stream stands still.
    """
    state = arrays["state"]
    rows, units = int(state[layout.ROWS]), int(state[layout.UNITS])
    if rows > 2 * int(state[layout.ACTIVE]) + DENSE_ROWS_MIN or units < 2 * int(state[layout.UNITS_FREE]):
        arrays = arrays | _gathered(arrays)
    return arrays | _strings_in_use(arrays)


def check(arrays: Arrays) -> None:
    """Raise ``CheckpointDamaged`` unless these can be a table's: kernels trust sizes."""
    for name, dtype in _LAYOUT.items():
        if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != 1:
            raise CheckpointDamaged(f"its array {name} is missing, or not of {np.dtype(dtype)}")
    state = arrays["state"]
    if state.size != layout.STATE_WORDS or arrays["free"].size != CLASSES or arrays["partition"].size != 1:
        raise CheckpointDamaged("its counters are not those of a session table")
    rows, sides, units = (int(state[place]) for place in (layout.ROWS, layout.SIDES, layout.UNITS))
    sizes = {"rows": rows * layout.ROW_WORDS, "side": sides * layout.SIDE_WORDS, "arena": units}
    if any(arrays[name].size != size for name, size in sizes.items()) or arrays["high"].size not in {0, rows * layout.DIMS}:
        raise CheckpointDamaged("its arrays do not have the sizes that its counters tell")
    counts = {arrays[name].size for name in ("text_sizes", "text_columns", "text_codes")}
    if len(counts) != 1 or int(arrays["text_sizes"].sum()) != arrays["text"].size:
        raise CheckpointDamaged("its strings do not have the sizes that it tells")
    cohort_snapshot.check(arrays, rows)


def from_schema_1(fields: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """A snapshot that knows no cohorts: its sessions will be of those of their dimensions last seen."""
    return fields, arrays and arrays | cohort_snapshot.none() | {"schema": np.array([2], np.int64)}


def mappings(table: layout.Table, arrays: Arrays, dictionaries: DictionaryStore) -> list[I32]:
    """For each dimension ``mapping[code]``: the code in ``dictionaries`` of every string that the table uses, else -1.

    ``table`` holds the rows of ``arrays``. Strings are interned; those that no row uses are not.
    """
    is_used = _is_used(table, arrays)
    ends = np.cumsum(arrays["text_sizes"])
    text = arrays["text"].tobytes()
    sizes = _codes_of(arrays)
    found: list[I32] = [np.full(size, -1, np.int32) for size in sizes]
    columns, codes = arrays["text_columns"][is_used].tolist(), arrays["text_codes"][is_used].tolist()
    starts = (ends - arrays["text_sizes"])[is_used].tolist()
    for column, code, start, end in zip(columns, codes, starts, ends[is_used].tolist(), strict=True):
        found[column - FIRST_DIMENSION][code] = dictionaries.intern(column, text[start:end])
    return found


def _codes_of(arrays: Arrays) -> list[int]:
    """How many codes each dimension has: the highest among the strings, and one."""
    highest: I64 = np.full(DIMENSIONS, -1, np.int64)
    columns = arrays["text_columns"] - FIRST_DIMENSION
    is_dimension = columns >= 0
    np.maximum.at(highest, columns[is_dimension], arrays["text_codes"][is_dimension])
    return [int(code) + 1 for code in highest]


def _is_used(table: layout.Table, arrays: Arrays) -> npt.NDArray[np.bool_]:
    """Of each string, whether a row has its code. Raises ``CheckpointDamaged`` where a row has a code without a string."""
    columns, codes = arrays["text_columns"], arrays["text_codes"]
    is_used = np.zeros(columns.size, np.bool_)
    sizes = _codes_of(arrays)
    firsts, highest = np.cumsum([0, *sizes], dtype=np.int64), np.full(DIMENSIONS, -1, np.int64)
    marked = np.zeros(int(firsts[-1]), np.uint8)
    kernel.mark_all_codes(table, firsts, marked, highest)
    for dimension, size in enumerate(sizes):
        flags = marked[firsts[dimension] : firsts[dimension + 1]]
        held = cohort_snapshot.codes_of(arrays, dimension)
        if size <= max(int(highest[dimension]), int(held.max(initial=-1))):
            raise CheckpointDamaged(f"a session has a {DICTIONARY_COLUMNS[FIRST_DIMENSION + dimension]} without a string")
        flags[held] = 1
        places = np.flatnonzero(columns == FIRST_DIMENSION + dimension)
        is_used[places] = flags[codes[places]] != 0
        if np.count_nonzero(flags) != np.count_nonzero(is_used[places]):
            raise CheckpointDamaged(f"a session has a {DICTIONARY_COLUMNS[FIRST_DIMENSION + dimension]} without a string, or with two")
    return is_used


def _strings_in_use(arrays: Arrays) -> Arrays:
    is_used = _is_used(_table_of(arrays), arrays)
    text = arrays["text"][np.repeat(is_used, arrays["text_sizes"])]
    return {"text": text} | {name: arrays[name][is_used] for name in ("text_sizes", "text_columns", "text_codes")}


def _gathered(arrays: Arrays) -> Arrays:
    """Rows, side rows and blobs moved together."""
    state = arrays["state"]
    active, units = int(state[layout.ACTIVE]), int(state[layout.UNITS] - state[layout.UNITS_FREE])
    counters = np.zeros_like(state)
    counters[[layout.ROW_FREE, layout.SIDE_FREE]] = NONE
    dense: Arrays = {
        "state": counters, "free": np.full(CLASSES, NONE, np.int64), "rows": np.zeros(active * layout.ROW_WORDS, np.int64),
        "side": np.zeros(int(state[layout.SIDES_USED]) * layout.SIDE_WORDS, np.int64),
        "high": np.zeros(active * layout.DIMS if arrays["high"].size else 0, np.uint16), "arena": np.zeros(units, np.uint32),
        "cohort_rows": np.zeros(active if arrays["cohort_rows"].size else 0, np.uint32),
    }  # fmt: skip
    kernel.gather(_table_of(arrays), _table_of(dense))
    for name in _KEPT_COUNTERS:
        counters[name] = state[name]
    return dense


def _table_of(arrays: Arrays) -> layout.Table:
    """A table over these arrays for kernels that go through rows: without index, timers and rules."""
    rows, arena = arrays["rows"], arrays["arena"]
    nothing: I64 = np.zeros(0, np.int64)
    return layout.Table(
        rows, rows.view(np.uint32), rows.view(np.uint16), arrays["high"], arrays["side"], arena.view(np.uint8), arena, np.zeros(0, np.uint32),
        nothing, nothing, arrays["free"], arrays["state"], nothing, 0, 0, 0, 0, 0, cohorts.off()._replace(of_row=arrays["cohort_rows"]),
    )  # fmt: skip
