"""The fields of an event by number, the columns they go to, and the table of known keys."""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.events import BOOL_NULL, CODE_NULL, DICTIONARY_COLUMNS, ID_COLUMNS, INT_COLUMNS, INT_NULL, LINE_BYTES_MAX, PADDING
from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.wide import copy_32, load_u64
from keystone.kernels.words import LOW_BYTES, hash_128

U = np.uint64

# Fields by number: dictionary columns, integers, identifiers, then the rest.
CODES, INTS = len(DICTIONARY_COLUMNS), len(INT_COLUMNS)
FIRST_INT = CODES
FIRST_ID = FIRST_INT + INTS
TS = FIRST_ID + len(ID_COLUMNS)
FATAL = TS + 1
UNKNOWN = FATAL + 1
FIELD_NAMES = (*DICTIONARY_COLUMNS, *INT_COLUMNS, *ID_COLUMNS, "ts", "fatal")
EVENT, PHASE, FIRST_CODED_DIMENSION = 0, DICTIONARY_COLUMNS.index("phase"), DICTIONARY_COLUMNS.index("title_id")
DEVICE, SESSION, USER, EXTRA = 0, 1, 2, 3
REQUIRED = U((1 << EVENT) | (1 << TS) | (1 << (FIRST_ID + DEVICE)) | (1 << (FIRST_ID + SESSION)))

I_DEVICE, I_SESSION, I_USER = 0, 3, 6  # places in Scratch.ids: size, and for the first two the halves of the hash
# Extras: what a row adds to the lake's ``extra``; a line up to the limit holds at most one key in five bytes.
EXTRAS_MAX = LINE_BYTES_MAX // 5 + 64
EXTRA_SLOTS = 1 << 19
EXTRAS_LINEAR = 16  # up to here keys are looked through one by one
STAMP, IS_BUILT = EXTRA_SLOTS, EXTRA_SLOTS + 1  # places behind the slots
X_FIELD, X_KEY, X_KEY_END, X_VALUE, X_VALUE_END, X_LO, X_HI = range(7)

STAGGER = 576  # bytes: nine cache lines, odd, so that up to 64 columns fall into different sets
STRIP_ROWS = 128  # rows whose columns are nulled at a time: 128 x ~120 B stays in the first-level cache


class Columns(NamedTuple):
    """Where rows go; ``ints (INTS, cap)``, ``codes (CODES, cap)``, ``valid (4, cap)``, ``ends int32 (4, cap + 1)``."""

    kind: np.ndarray
    fatal: np.ndarray
    ts: np.ndarray
    ints: np.ndarray
    codes: np.ndarray
    valid: np.ndarray
    ends: np.ndarray
    device: np.ndarray
    session: np.ndarray
    user: np.ndarray
    extra: np.ndarray
    key_lo: np.ndarray
    key_hi: np.ndarray
    user_hash: np.ndarray
    offset: np.ndarray
    line: np.ndarray
    append_ts: np.ndarray


class Scratch(NamedTuple):
    """``extras`` int64 (7, EXTRAS_MAX), ``slots`` int64, ``stack`` and ``text`` uint8, ``keys`` uint64 (5 * 128),
    ``ids`` uint64 (8): hashes and sizes of the row's identifiers, in memory to leave registers to the bytes."""

    extras: np.ndarray
    slots: np.ndarray
    stack: np.ndarray
    text: np.ndarray
    keys: np.ndarray
    ids: np.ndarray


KEY_SLOTS, KEY_WORDS = 128, 4  # a slot: two words of the name, its size, its field + 1
KEY_SIZE_MAX = 16


@piece
def key_slot(first, second, size):
    mixed = (first * U(0x9E3779B97F4A7C15)) ^ (second * U(0xD6E8FEB86659FD93)) ^ U(size)
    mixed ^= mixed >> U(32)
    mixed *= U(0x9FB21C651E98DF25)
    return np.int64(mixed >> U(57)) * KEY_WORDS


@piece
def field_of(text, start, size, keys):
    """Field number of the key ``text[start:start + size]``, or UNKNOWN."""
    if size > KEY_SIZE_MAX:
        return np.int64(UNKNOWN)
    first = load_u64(text, start) & LOW_BYTES[size]
    second = load_u64(text, start + 8) & LOW_BYTES[max(size - 8, 0)]
    slot = key_slot(first, second, size)
    while keys[slot + 3] != U(0):
        if keys[slot] == first and keys[slot + 1] == second and keys[slot + 2] == U(size):
            return np.int64(keys[slot + 3]) - 1
        slot = (slot + KEY_WORDS) & (KEY_SLOTS * KEY_WORDS - 1)
    return np.int64(UNKNOWN)


@kernel
def fill_keys(names, sizes, keys):
    """Make the table of known keys; ``names`` uint8 (fields, 32)."""
    flat = names.reshape(-1)
    for field in range(sizes.size):
        size = sizes[field]
        first = load_u64(flat, 32 * field) & LOW_BYTES[size]
        second = load_u64(flat, 32 * field + 8) & LOW_BYTES[max(size - 8, 0)]
        slot = key_slot(first, second, size)
        while keys[slot + 3] != U(0):
            slot = (slot + KEY_WORDS) & (KEY_SLOTS * KEY_WORDS - 1)
        keys[slot], keys[slot + 1], keys[slot + 2], keys[slot + 3] = first, second, U(size), U(field + 1)


@piece
def clear_row(row, columns):
    for i in range(INTS):
        columns.ints[i, row] = INT_NULL
    for i in range(CODES):
        columns.codes[i, row] = CODE_NULL
    columns.fatal[row] = BOOL_NULL
    columns.user_hash[row] = U(0)
    columns.valid[USER, row] = 0
    columns.valid[EXTRA, row] = 0


@callee
def clear_strip(row, rows, columns):
    """Null the next rows; column by column, so that LLVM writes 32 bytes at a time."""
    end = min(row + STRIP_ROWS, rows)
    for i in range(INTS):
        columns.ints[i, row:end] = INT_NULL
    for i in range(CODES):
        columns.codes[i, row:end] = CODE_NULL
    columns.fatal[row:end] = BOOL_NULL
    columns.user_hash[row:end] = U(0)
    columns.valid[USER, row:end] = 0
    columns.valid[EXTRA, row:end] = 0
    return end


@piece
def copy_string(text, start, size, out, to):
    """Copy a string, 32 bytes at a time (both sides have spare bytes)."""
    done = 0
    while done < size:
        copy_32(out, to + done, text, start + done)
        done += 32


@piece
def put_id(field, text, start, size, place, columns, ids, secrets):
    """Store an identifier in its column and its hash and size in ``ids``."""
    lo, hi = hash_128(text, start, size, secrets)
    if field == FIRST_ID + DEVICE:
        copy_string(text, start, size, columns.device, np.int64(columns.ends[DEVICE, place]))
        ids[I_DEVICE], ids[I_DEVICE + 1], ids[I_DEVICE + 2] = U(size), lo, hi
    elif field == FIRST_ID + SESSION:
        copy_string(text, start, size, columns.session, np.int64(columns.ends[SESSION, place]))
        ids[I_SESSION], ids[I_SESSION + 1], ids[I_SESSION + 2] = U(size), lo, hi
    else:
        copy_string(text, start, size, columns.user, np.int64(columns.ends[USER, place]))
        ids[I_USER] = U(size)
        columns.user_hash[place] = lo | U(1)  # 0 means absent
        columns.valid[USER, place] = 1


def new_columns(rows: int, text_bytes: int) -> Columns:
    """Room for ``rows`` rows whose strings hold at most ``text_bytes`` (and one longest line) a column.

    A row is written to forty columns at once. At equal distances of a power of two their lines would share one set of
    the caches: decoding took 100 to 140 ns an event, as pages happened to lie. So each column starts nine lines further.
    """
    capacity = text_bytes + LINE_BYTES_MAX + PADDING  # untouched pages cost nothing
    data = [np.empty(capacity, np.uint8) for _ in range(4)]
    valid = np.zeros((6, rows + STAGGER), np.uint8)  # four string columns, then duplicate and late
    valid[:2] = 1  # device_id and session_id are never null
    ints = np.empty((INTS, rows + STAGGER // 8), np.int64)
    codes = np.empty((CODES, rows + STAGGER // 4), np.int32)
    ends = np.zeros((4, rows + 1 + STAGGER // 4), np.int32)

    def column(place: int, dtype: type) -> np.ndarray:
        first = place * STAGGER // np.dtype(dtype).itemsize
        return np.empty(first + rows, dtype)[first:]

    kind, fatal, ts = column(1, np.int8), column(2, np.int8), column(3, np.int64)
    hashes = [column(place, np.uint64) for place in (4, 5, 6)]
    return Columns(
        kind, fatal, ts, ints, codes, valid, ends, *data, *hashes, column(7, np.int64), column(8, np.int32), column(9, np.int64),
    )  # fmt: skip


def new_scratch() -> Scratch:
    """Scratch room, untouched where it can be, and the table of known keys."""
    names = np.zeros((len(FIELD_NAMES), 32), np.uint8)
    for i, name in enumerate(FIELD_NAMES):
        names[i, : len(name)] = np.frombuffer(name.encode(), np.uint8)
    keys = np.zeros(KEY_SLOTS * KEY_WORDS, np.uint64)
    fill_keys(names, np.array([len(n) for n in FIELD_NAMES], np.int64), keys)
    return Scratch(
        np.empty((7, EXTRAS_MAX + 1), np.int64), np.zeros(EXTRA_SLOTS + 2, np.int64), np.empty(LINE_BYTES_MAX + 16, np.uint8),
        np.empty(LINE_BYTES_MAX + 4 * PADDING, np.uint8), keys, np.zeros(8, np.uint64),
    )  # fmt: skip
