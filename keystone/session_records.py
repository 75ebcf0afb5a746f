"""Closed sessions as columns (SPEC: the session record)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from keystone.events import CODED_DIMENSIONS, END_REASONS, FIRST_DIMENSION, I32, I64, INT_NULL, OUTCOMES, U8
from keystone.kernels import session_rows as layout
from keystone.session_snapshot import DictionaryStore

_COUNTS: Final = ("events", "buffers", "errors", "duplicates", "late", "alerts")
_WORDS: Final = pa.dictionary(pa.int32(), pa.string())  # few values, many rows; a Parquet file holds plain strings
_DENSE: Final = 1024  # codes that are looked up whether they occur or not: cheaper than finding out
#: The columns of a session record, in order. Null where there is none: ``startup_ms``, ``mean_bitrate_kbps``, dimensions.
SESSION_SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("device_id", "session_id")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("start_ts", "end_ts", "duration_ms", "playing_ms")),
        pa.field("startup_ms", pa.int64()),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("stall_ms", *_COUNTS)),
        pa.field("mean_bitrate_kbps", pa.float64()),
        *(pa.field(name, _WORDS, nullable=False) for name in ("end_reason", "outcome")),
        pa.field("user_id", pa.string()),
        *(pa.field(name, _WORDS) for name in CODED_DIMENSIONS),
    ]
)
_EXACT: Final = 1 << 53  # sums up to here are whole as float64


def names_of(text: U8, ends: I64, rows: int) -> list[tuple[str, str, str | None]]:
    """Device, session and user of a few rows that a kernel wrote, as strings (columns cost 60 us whatever their size)."""
    third = text.size // 3
    names = []
    starts = [0, third, 2 * third]
    for row_ends in ends[: 3 * rows].reshape(rows, 3).tolist():
        stops = [k * third + _place(end) for k, end in enumerate(row_ends)]
        device, session, user = (text[start:stop].tobytes().decode() for start, stop in zip(starts, stops, strict=True))
        names.append((device, session, None if row_ends[2] < 0 else user))
        starts = stops
    return names


def _place(end: int) -> int:
    """A null's end is kept as -end - 1."""
    return -end - 1 if end < 0 else end


@dataclass(frozen=True, slots=True)
class Names:
    """Identifiers of some rows: ``text[k]`` uint8, ``ends`` (rows, 3) int64; a null has -end - 1."""

    text: tuple[U8, U8, U8]
    ends: I64

    @classmethod
    def copy_of(cls, text: U8, ends: I64, rows: int) -> Names:
        """Copies of what a kernel wrote for ``rows`` >= 1 rows."""
        places = ends[: 3 * rows].reshape(rows, 3).copy()
        third = text.size // 3
        device, session, user = (text[k * third : k * third + _place(end)].copy() for k, end in enumerate(places[-1].tolist()))
        return cls((device, session, user), places)

    def column(self, k: int) -> pa.Array:
        ends = self.ends[:, k]
        is_null = ends < 0
        offsets = np.zeros(ends.size + 1, np.int32)  # one kernel call's strings: far below 2 GB
        offsets[1:] = np.where(is_null, -ends - 1, ends)
        return pa.StringArray.from_buffers(ends.size, pa.py_buffer(offsets), pa.py_buffer(self.text[k]), _validity(~is_null))


@dataclass(frozen=True, slots=True)
class _Closed:
    """What one kernel call closed: ``numbers`` (CLOSED_WORDS, rows), ``codes`` (coded dimensions, rows)."""

    numbers: I64
    codes: I32
    names: Names


@dataclass(slots=True)
class SessionRecords:
    """Closed sessions, in no order. Cheap to gather and add up; ``to_arrow`` makes the table.

    Dimension codes are looked up by ``to_arrow``: call it before the dictionaries are renumbered.
    """

    dictionaries: DictionaryStore
    chunks: list[_Closed] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(chunk.numbers.shape[1] for chunk in self.chunks)

    def __len__(self) -> int:
        return self.rows

    def take(self, numbers: I64, codes: I32, names: Names) -> None:
        """Add rows; the arrays belong to this object from then on."""
        self.chunks.append(_Closed(numbers, codes, names))

    def extend(self, more: SessionRecords) -> None:
        """Add the rows of another object with the same dictionaries."""
        self.chunks.extend(more.chunks)

    @classmethod
    def concat(cls, dictionaries: DictionaryStore, parts: Iterable[SessionRecords]) -> SessionRecords:
        """All rows of ``parts`` (which share ``dictionaries``)."""
        return cls(dictionaries, [chunk for part in parts for chunk in part.chunks])

    def to_arrow(self) -> pa.Table:
        """One table with SESSION_SCHEMA."""
        if not self.chunks:
            return SESSION_SCHEMA.empty_table()
        numbers = np.concatenate([chunk.numbers for chunk in self.chunks], axis=1)
        codes = np.concatenate([chunk.codes for chunk in self.chunks], axis=1)
        ids = [_joined(chunk.names.column(k) for chunk in self.chunks) for k in range(3)]
        coded = [_texts(codes[d], FIRST_DIMENSION + d, self.dictionaries) for d in range(len(CODED_DIMENSIONS))]
        return pa.Table.from_arrays([ids[0], ids[1], *_columns(numbers), ids[2], *coded], schema=SESSION_SCHEMA)


def _joined(arrays: Iterable[pa.Array]) -> pa.ChunkedArray:
    return pa.chunked_array(arrays, pa.string())  # not copied into one, which could not hold over 2 GB


def _columns(numbers: I64) -> list[pa.Array]:
    """The columns between the identifiers and the dimensions."""
    start_ts, end_ts, startup, stall_ms = (numbers[k] for k in (layout.C_START_TS, layout.C_END_TS, layout.C_STARTUP, layout.C_STALL_MS))
    duration = end_ts - start_ts
    has_startup = startup != INT_NULL
    left = duration - np.where(has_startup, startup, 0)
    playing = np.where(stall_ms >= left, 0, left - np.minimum(stall_ms, left))  # no overflow, however large stall_ms
    counts = (layout.C_EVENTS, layout.C_BUFFERS, layout.C_ERRORS, layout.C_DUPLICATES, layout.C_LATE, layout.C_ALERTS)
    return [
        *(pa.array(column) for column in (start_ts, end_ts, duration, playing)),
        pa.array(startup, mask=~has_startup),
        pa.array(stall_ms),
        *(pa.array(numbers[k]) for k in counts),
        _mean(numbers[layout.C_BITRATE_SUM], numbers[layout.C_BITRATES]),
        _named(numbers[layout.C_REASON], END_REASONS),
        _named(numbers[layout.C_OUTCOME], OUTCOMES),
    ]


def _mean(sums: I64, counts: I64) -> pa.Array:
    means = sums / np.maximum(counts, 1)
    for row in np.flatnonzero((sums > _EXACT) | (sums < -_EXACT)):  # float64 would round twice
        means[row] = int(sums[row]) / int(counts[row])
    return pa.array(means, mask=counts == 0)


def _named(numbers: I64, names: tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), pa.array(names))


def _texts(codes: I32, column: int, dictionaries: DictionaryStore) -> pa.Array:
    """Dictionary codes, -1 = null, with the strings behind those that occur."""
    highest = int(codes.max(initial=-1))
    if highest < max(codes.size, _DENSE):
        used, places = range(highest + 1), codes
    else:
        distinct, inverse = np.unique(codes, return_inverse=True)
        nulls = int(distinct[0] < 0)  # Parquet knows no null among a dictionary's values
        used, places = distinct[nulls:].tolist(), np.where(codes < 0, -1, inverse - nulls).astype(np.int32)
    values = pa.array([dictionaries.text(column, code) for code in used], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(places, pa.int32(), mask=places < 0), values)


def _validity(is_valid: npt.NDArray[np.bool_]) -> pa.Buffer | None:
    if is_valid.all():
        return None
    return pa.py_buffer(np.packbits(is_valid, bitorder="little"))
