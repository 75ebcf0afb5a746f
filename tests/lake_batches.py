"""Event batches from plain rows, for the lake's tests: what a decoder and a session table would hand over."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa

from keystone.events import BOOL_NULL, CODE_NULL, DICTIONARY_COLUMNS, INT_COLUMNS, INT_NULL, PADDING, EventBatch, StringColumn
from keystone.sinks.lake_schema import COLUMNS, NAMES

APPEND_MS = 1_790_000_000_000  # 2026-09-21 14:13:20 UTC
DAY_MS = 86_400_000


class ToyDictionaries:
    """Codes in order of appearance."""

    def __init__(self):
        self.values = [[] for _ in DICTIONARY_COLUMNS]
        self.codes = [{} for _ in DICTIONARY_COLUMNS]

    def code(self, column, value):
        if value is None:
            return CODE_NULL
        known = self.codes[column]
        if value not in known:
            known[value] = len(self.values[column])
            self.values[column].append(value)
        return known[value]

    def arrow(self, column):
        return pa.array(self.values[column], pa.string())

    def size(self, column):
        return len(self.values[column])


def row(offset=0, line=0, **fields):
    """One lake row with defaults."""
    given = dict.fromkeys(NAMES)
    given.update(event="Heartbeat", ts=APPEND_MS, device_id="d", session_id="s", append_ts=APPEND_MS, partition=0, offset=offset, line=line)
    given.update(duplicate=False, late=False)
    given.update(fields)
    assert list(given) == list(NAMES)
    return given


def strings(values, *, junk=False):
    """Arrow layout. ``junk``: nulls have bytes, which nobody may see, and the data starts somewhere."""
    parts = [b"junk" if value is None and junk else (value or "").encode() for value in values]
    first = 7 if junk else 0
    offsets = np.cumsum([first, *map(len, parts)]).astype(np.int32)
    data = np.frombuffer(b"x" * first + b"".join(parts) + b"\xee" * PADDING, np.uint8).copy()
    return StringColumn(offsets, data, np.array([value is not None for value in values], np.uint8))


def batch_of(rows, dictionaries, *, junk=False, spare=3):
    """A batch of lake rows. ``spare`` makes its two-dimensional columns views of wider arrays, as a decoder's are."""
    n = len(rows)

    def column(name, dtype, null=0):
        return np.array([null if r[name] is None else r[name] for r in rows], dtype)

    ints = np.full((len(INT_COLUMNS), n + spare), 77, np.int64)
    codes = np.full((len(DICTIONARY_COLUMNS), n + spare), 77, np.int32)
    for i, name in enumerate(INT_COLUMNS):
        ints[i, :n] = column(name, np.int64, INT_NULL)
    for i, name in enumerate(DICTIONARY_COLUMNS):
        codes[i, :n] = [dictionaries.code(i, r[name]) for r in rows]
    text = {name: strings([r[name] for r in rows], junk=junk) for name in ("device_id", "session_id", "user_id", "extra")}
    none = np.zeros(n, np.uint64)
    return EventBatch(
        rows[0]["partition"] if rows else 0, n, np.zeros(n, np.int8), column("fatal", np.int8, BOOL_NULL), column("ts", np.int64), ints[:, :n],
        codes[:, :n], text["device_id"], text["session_id"], text["user_id"], text["extra"], none, none, none, column("offset", np.int64),
        column("line", np.int32), column("append_ts", np.int64), column("duplicate", np.uint8), column("late", np.uint8),
    )  # fmt: skip


def random_rows(count, seed=0, *, partition=0, first_offset=0, null_share=0.3, titles=5):
    """Rows with every column used, in frames of three lines."""
    source = random.Random(seed)

    def value(column, i):
        if column.is_optional and source.random() < null_share:
            return None
        if column.type == "bool":
            return source.random() < 0.5
        if column.type == "string":
            return f"{column.name}-{source.randrange(titles if column.name == 'title_id' else 5)}"
        return source.choice([0, 1, -1, i, 5800, 2**53 - 1, -(2**53) + 1, source.randrange(10**7)])

    rows = []
    for i in range(count):
        fields = {column.name: value(column, i) for column in COLUMNS}
        fields.update(ts=APPEND_MS + source.randrange(-5000, 5000), append_ts=APPEND_MS + i // 3, partition=partition)
        fields.update(offset=first_offset + i // 3, line=i % 3, device_id=f"d-{source.randrange(10**9)}é", session_id=f"{source.getrandbits(64):016x}")
        rows.append(fields)
    return rows
