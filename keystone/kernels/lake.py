"""Columns of an event batch to Parquet data pages: one call makes the page of every column.

Why not a library: writing a row costs pyarrow, tuned, and Polars 1.6 times as much (benchmarks/results/lake_write.json), without
the copy from batches that they would need. Here nulls are marked in the columns already, strings are coded already, and the
batch is still in the processor's cache.

A page is a ``DataPageHeaderV2`` header, definition levels (optional columns; RLE/bit-packed hybrid of width 1) and values:
dictionary indices (hybrid), integers (DELTA_BINARY_PACKED), strings (DELTA_LENGTH_BYTE_ARRAY), booleans (RLE). Pages leave
here uncompressed; https://parquet.apache.org/docs/file-format/data-pages/encodings/ describes the encodings.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.kernels.compiler import callee, kernel
from keystone.kernels.lake_bits import BLOCK, put_boolean_values, put_deltas, put_flags, put_indices, put_varint
from keystone.kernels.shared_memory import copy_bytes

U = np.uint64

# Places of columns in ``table``; ``sinks/lake_schema.py`` holds the names in this order, a test compares.
EVENT, TS, DEVICE, SESSION, SEQ, PHASE, FATAL, REASON, ERROR_CODE, USER, TITLE = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
BITRATE, APPEND_TS, PARTITION, OFFSET, LINE, DUPLICATE, LATE, EXTRA = 19, 25, 26, 27, 28, 29, 30, 31
COLUMNS = 32
CODE_COLUMNS = 13
INT_COLUMNS = 7
# The place of each row of EventBatch.codes and EventBatch.ints.
CODE_PLACE = np.array([EVENT, PHASE, REASON, ERROR_CODE, *range(TITLE, BITRATE)], np.int64)
INT_PLACE = np.array([SEQ, *range(BITRATE, APPEND_TS)], np.int64)

# What a row of ``table`` tells of a page: it is out[START:END]; levels and values are out[BODY:END], LEVELS bytes of
# them levels; PRESENT values are not null; CODE_MAX the highest dictionary index used; MIN and MAX of ts and offset;
# ENCODING of the values.
START, BODY, END, LEVELS, PRESENT, CODE_MAX, MIN, MAX, ENCODING = 0, 1, 2, 3, 4, 5, 6, 7, 8
TABLE_WORDS = 9

FEW_INTS = 1  # the row of EventBatch.ints with few different values: bitrate_kbps, rungs of a ladder
KNOWN_MAX, KNOWN_SLOTS = 256, 1024  # of them a row group's dictionary holds; slots of its hash table
KNOWN_COUNT, KNOWN_FULL = 0, 1

PLAIN, RLE, DELTA_BINARY, DELTA_LENGTH, RLE_DICTIONARY = 0, 3, 5, 6, 8  # Parquet's numbers of the encodings
DATA_PAGE_V2 = 3
HEADER_MAX = 56  # bytes of a page header: seven varints of at most five bytes, and 16 bytes around them


INT_NULL = np.iinfo(np.int64).min


class Text(NamedTuple):
    """A string column: ``offsets`` int32 (rows + 1,), ``data`` uint8, ``valid`` uint8 (rows,)."""

    offsets: np.ndarray
    data: np.ndarray
    valid: np.ndarray


class Scratch(NamedTuple):
    """Working room for ``rows`` rows: ``values`` int64 (rows + 256,), ``valid`` uint8 (rows + 64,), ``deltas`` int64 (BLOCK,)."""

    values: np.ndarray
    valid: np.ndarray
    deltas: np.ndarray


class Known(NamedTuple):
    """The values of a row group's column of few different integers, by index: ``values`` int64 (KNOWN_MAX,); ``slots`` int64
    (KNOWN_SLOTS,), index plus one; ``state`` int64: KNOWN_COUNT values, KNOWN_FULL once there were more."""

    values: np.ndarray
    slots: np.ndarray
    state: np.ndarray


@callee
def close_page(rows, present, levels, body, encoding, end, place, out, table):
    """Write the header so that it ends where the body begins, and the page's row of ``table``. Returns ``end``."""
    size = U(end - body) << U(1)
    head = body - HEADER_MAX
    at = head
    out[at], out[at + 1] = 0x15, DATA_PAGE_V2 << 1
    out[at + 2] = 0x15
    at = put_varint(out, at + 3, size)
    out[at] = 0x15
    at = put_varint(out, at + 1, size)
    out[at], out[at + 1] = 0x5C, 0x15
    at = put_varint(out, at + 2, U(rows) << U(1))
    out[at] = 0x15
    at = put_varint(out, at + 1, U(rows - present) << U(1))
    out[at] = 0x15
    at = put_varint(out, at + 1, U(rows) << U(1))
    out[at], out[at + 1], out[at + 2] = 0x15, encoding << 1, 0x15
    at = put_varint(out, at + 3, U(levels) << U(1))
    out[at], out[at + 1], out[at + 2], out[at + 3], out[at + 4] = 0x15, 0, 0x12, 0, 0
    at += 5
    size_head = at - head
    start = body - size_head
    for i in range(size_head):  # moves right, never overlapping onto bytes still to be read when going backwards
        out[body - 1 - i] = out[head + size_head - 1 - i]
    table[place, START], table[place, BODY], table[place, END] = start, body, end
    table[place, LEVELS], table[place, PRESENT], table[place, ENCODING] = levels, present, encoding
    return end


@callee
def put_codes(codes, first, rows, place, out, at, scratch, table):
    """The page of a dictionary-coded column, ``codes[first:first + rows]`` (int32, -1 null)."""
    values, valid = scratch.values, scratch.valid
    body = at + HEADER_MAX
    present = 0
    low, high = np.int32(2147483647), np.int32(-1)
    for i in range(rows):
        code = codes[first + i]
        valid[i] = 1 if code >= 0 else 0
        present += 1 if code >= 0 else 0
        high = max(high, code)
        low = min(low, code)
    at = put_flags(valid, rows, present, out, body)
    levels = at - body
    if present == rows:
        for i in range(rows):
            values[i] = codes[first + i]
    elif present:
        filled = 0
        low = np.int32(2147483647)
        for i in range(rows):
            code = codes[first + i]
            values[filled] = code
            filled += np.int64(valid[i])
            low = min(low, code if code >= 0 else np.int32(2147483647))
    table[place, CODE_MAX] = high
    at = put_indices(values, present, np.int64(low), np.int64(high), out, at)
    return close_page(rows, present, levels, body, RLE_DICTIONARY, at, place, out, table)


@callee
def put_ints(ints, first, rows, place, out, at, scratch, table):
    """The page of an optional integer column, ``ints[first:first + rows]`` (int64, INT_NULL null)."""
    values, valid = scratch.values, scratch.valid
    body = at + HEADER_MAX
    present = 0
    for i in range(rows):
        is_valid = ints[first + i] != INT_NULL
        valid[i] = 1 if is_valid else 0
        present += 1 if is_valid else 0
    at = put_flags(valid, rows, present, out, body)
    levels = at - body
    if present == rows:
        for i in range(rows):
            values[i] = ints[first + i]
    elif present:
        filled = 0
        for i in range(rows):
            values[filled] = ints[first + i]
            filled += np.int64(valid[i])
    at = put_deltas(values, present, out, at, scratch.deltas)
    return close_page(rows, present, levels, body, DELTA_BINARY, at, place, out, table)


@callee
def index_values(values, count, known):
    """Replace ``values[:count]`` by their indices in ``known``, which grows. False: too many; then ``values`` are spoilt."""
    last, last_index = np.int64(INT_NULL), np.int64(0)
    for i in range(count):
        value = values[i]
        if value != last:
            slot = np.int64((U(value) * U(0x9E3779B97F4A7C15)) >> U(54))
            while known.slots[slot] != 0 and known.values[known.slots[slot] - 1] != value:
                slot = (slot + 1) & (KNOWN_SLOTS - 1)
            if known.slots[slot] == 0:
                if known.state[KNOWN_COUNT] == KNOWN_MAX:
                    known.state[KNOWN_FULL] = 1
                    return False
                known.values[known.state[KNOWN_COUNT]] = value
                known.state[KNOWN_COUNT] += 1
                known.slots[slot] = known.state[KNOWN_COUNT]
            last, last_index = value, known.slots[slot] - 1
        values[i] = last_index
    return True


@callee
def put_few_ints(ints, first, rows, place, known, out, at, scratch, table):
    """As ``put_ints`` for a column of few different values: dictionary indices while the row group has at most KNOWN_MAX."""
    if known.state[KNOWN_FULL]:
        return put_ints(ints, first, rows, place, out, at, scratch, table)
    values, valid = scratch.values, scratch.valid
    present = 0
    for i in range(rows):
        is_valid = ints[first + i] != INT_NULL
        valid[i] = 1 if is_valid else 0
        values[present] = ints[first + i]
        present += 1 if is_valid else 0
    if not index_values(values, present, known):
        return put_ints(ints, first, rows, place, out, at, scratch, table)
    body = at + HEADER_MAX
    at = put_flags(valid, rows, present, out, body)
    levels = at - body
    low, high = np.int64(KNOWN_MAX), np.int64(0)
    for i in range(present):
        low = min(low, values[i])
        high = max(high, values[i])
    at = put_indices(values, present, low, high, out, at)
    return close_page(rows, present, levels, body, RLE_DICTIONARY, at, place, out, table)


@callee
def put_required(values, rows, place, out, at, scratch, table):
    """The page of an int64 column without nulls."""
    body = at + HEADER_MAX
    at = put_deltas(values, rows, out, body, scratch.deltas)
    low, high = values[0], values[0]
    for i in range(rows):
        low = min(low, values[i])
        high = max(high, values[i])
    table[place, MIN], table[place, MAX] = low, high
    return close_page(rows, rows, 0, body, DELTA_BINARY, at, place, out, table)


@callee
def put_text(text, rows, is_optional, place, out, at, scratch, table):
    """The page of a string column. A null's bytes, if it has any, are left out."""
    values = scratch.values
    body = at + HEADER_MAX
    offsets, valid = text.offsets, text.valid
    present, size = 0, np.int64(0)
    for i in range(rows):
        present += np.int64(valid[i])
    at = body
    if is_optional:
        for i in range(rows):
            scratch.valid[i] = valid[i]
        at = put_flags(scratch.valid, rows, present, out, body)
    levels = at - body
    if present == rows:
        for i in range(rows):
            values[i] = np.int64(offsets[i + 1]) - np.int64(offsets[i])
    else:
        filled = 0
        for i in range(rows):
            values[filled] = np.int64(offsets[i + 1]) - np.int64(offsets[i])
            filled += np.int64(valid[i])
    for i in range(present):
        size += values[i]
    at = put_deltas(values, present, out, at, scratch.deltas)
    start = np.int64(offsets[0])
    if size == np.int64(offsets[rows]) - start:
        copy_bytes(out, at, text.data, start, size)
        at += size
    else:
        for i in range(rows):
            if valid[i]:
                wide = np.int64(offsets[i + 1]) - np.int64(offsets[i])
                copy_bytes(out, at, text.data, np.int64(offsets[i]), wide)
                at += wide
    return close_page(rows, present, levels, body, DELTA_LENGTH, at, place, out, table)


@callee
def put_booleans(flags, rows, place, out, at, scratch, table):
    """The page of a boolean column: int8, -1 null (then optional), 0, 1."""
    values = scratch.valid
    body = at + HEADER_MAX
    present = 0
    for i in range(rows):
        values[i] = 1 if flags[i] >= 0 else 0
        present += 1 if flags[i] >= 0 else 0
    at = put_flags(values, rows, present, out, body)
    levels = at - body
    ones, filled = 0, 0
    for i in range(rows):
        if flags[i] >= 0:
            values[filled] = np.uint8(flags[i])
            ones += np.int64(flags[i])
            filled += 1
    at = put_boolean_values(values, present, ones, out, at)
    return close_page(rows, present, levels, body, RLE, at, place, out, table)


@callee
def put_marks(marks, rows, place, out, at, scratch, table):
    """The page of a required boolean column (uint8, 0 or 1)."""
    values = scratch.valid
    body = at + HEADER_MAX
    ones = 0
    for i in range(rows):
        values[i] = marks[i]
        ones += np.int64(marks[i])
    at = put_boolean_values(values, rows, ones, out, body)
    return close_page(rows, rows, 0, body, RLE, at, place, out, table)


@kernel
def encode_pages(
    rows, partition, has_log_time, ts, offset, append_ts, line, ints, int_stride, codes, code_stride, local, local_stride, is_local,
    fatal, duplicate, late, device, session, user, extra, code_place, int_place, scratch, known, out, table,
):  # fmt: skip
    """Write the page of every column for ``rows`` (> 0) rows into ``out`` and describe them in ``table``; returns bytes used.

    ``ints`` and ``codes`` are the two-dimensional columns of EventBatch seen as one dimension, rows ``*_stride`` items
    apart. Where ``is_local[c]``, column c is taken from ``local`` instead (codes of the row group's own dictionary).
    ``out`` has room for ``page_bytes_max``. Pages lie in no particular order; ``table`` is (COLUMNS, TABLE_WORDS) int64.
    """
    at = np.int64(0)
    for c in range(CODE_COLUMNS):
        if is_local[c]:
            at = put_codes(local, c * local_stride, rows, code_place[c], out, at, scratch, table)
        else:
            at = put_codes(codes, c * code_stride, rows, code_place[c], out, at, scratch, table)
    at = put_few_ints(ints, FEW_INTS * int_stride, rows, BITRATE, known, out, at, scratch, table)
    for c in range(INT_COLUMNS):
        if c == FEW_INTS:
            continue
        at = put_ints(ints, c * int_stride, rows, int_place[c], out, at, scratch, table)
    at = put_required(ts, rows, TS, out, at, scratch, table)
    at = put_required(offset, rows, OFFSET, out, at, scratch, table)
    values = scratch.values
    for i in range(rows):
        values[i] = line[i]
    at = put_required(values, rows, LINE, out, at, scratch, table)
    for i in range(rows):
        values[i] = partition
    at = put_required(values, rows, PARTITION, out, at, scratch, table)
    if has_log_time:
        at = put_ints(append_ts, 0, rows, APPEND_TS, out, at, scratch, table)
    else:
        body = at + HEADER_MAX
        at = put_flags(scratch.valid, rows, 0, out, body)
        levels = at - body
        at = put_deltas(values, 0, out, at, scratch.deltas)
        at = close_page(rows, 0, levels, body, DELTA_BINARY, at, APPEND_TS, out, table)
    at = put_text(device, rows, False, DEVICE, out, at, scratch, table)
    at = put_text(session, rows, False, SESSION, out, at, scratch, table)
    at = put_text(user, rows, True, USER, out, at, scratch, table)
    at = put_text(extra, rows, True, EXTRA, out, at, scratch, table)
    at = put_booleans(fatal, rows, FATAL, out, at, scratch, table)
    at = put_marks(duplicate, rows, DUPLICATE, out, at, scratch, table)
    return put_marks(late, rows, LATE, out, at, scratch, table)


@kernel
def plain_strings(offsets, data, first, count, out):
    """PLAIN strings: four bytes of length, then the bytes. Returns the bytes used; ``out`` has room for 4 * count more than the text."""
    at = np.int64(0)
    for i in range(first, first + count):
        size = np.int64(offsets[i + 1]) - np.int64(offsets[i])
        for k in range(4):
            out[at + k] = np.uint8((size >> (8 * k)) & 255)
        copy_bytes(out, at + 4, data, np.int64(offsets[i]), size)
        at += 4 + size
    return at


def page_bytes_max(rows: int, text_bytes: int) -> int:
    """Room ``encode_pages`` may need: full-width values, headers and levels of every column, and the strings."""
    integers = INT_COLUMNS + 5 + 4  # and the lengths of four string columns
    return CODE_COLUMNS * rows * 4 + integers * (rows + BLOCK) * 9 + COLUMNS * (rows // 8 + 256) + text_bytes


def new_scratch(rows: int) -> Scratch:
    return Scratch(np.zeros(rows + 2 * BLOCK, np.int64), np.zeros(rows + 64, np.uint8), np.zeros(BLOCK, np.int64))


def new_known() -> Known:
    return Known(np.zeros(KNOWN_MAX, np.int64), np.zeros(KNOWN_SLOTS, np.int64), np.zeros(2, np.int64))


def warm_up():
    """Compile or load every kernel."""
    rows = 1
    i64, i32, u8 = np.zeros(64, np.int64), np.zeros(64, np.int32), np.zeros(64, np.uint8)
    text = Text(np.zeros(2, np.int32), u8, u8[:1])
    table, out = np.zeros((COLUMNS, TABLE_WORDS), np.int64), np.zeros(page_bytes_max(rows, 64), np.uint8)
    local = np.zeros(CODE_COLUMNS * rows, np.int32)
    encode_pages(
        rows, 0, 1, i64[:1], i64[:1], i64[:1], i32[:1], i64, 1, i32, 1, local, 1, np.zeros(CODE_COLUMNS, np.uint8), u8[:1].view(np.int8),
        u8[:1], u8[:1], text, text, text, text, CODE_PLACE, INT_PLACE, new_scratch(rows), new_known(), out, table,
    )  # fmt: skip
    plain_strings(i32[:2], u8, 0, 1, out)
