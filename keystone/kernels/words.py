"""Dictionary coding: strings to dense codes, one code space a column, exact (the bytes are compared, not the hash).

One open-addressed table serves all columns. A slot is four uint64: two words of content, ``size | column << 32``, and
the entry number plus one (0 = free) below the code. Strings of up to 16 bytes lie in the slot itself; longer ones leave their
128-bit hash there and are compared in the arena.
"""

# mypy: ignore-errors

from typing import NamedTuple

import numpy as np

from keystone.kernels.compiler import callee, kernel, piece
from keystone.kernels.wide import item, load_u64, multiply_high

U = np.uint64
FULL = -2  # intern: no room; the caller grows the table and asks again
SLOT_WORDS = 4
LOW_32 = U(0xFFFFFFFF)
SLOTS_MIN = 1 << 12  # to start with: 128 KB, half a second-level cache's share
ARENA_BYTES_MIN = 1 << 20
COUNT, BYTES = 0, 1  # places in Words.state
KNOWN_EVENTS = 5  # codes 0..4 of the event column are the five known names

LOW_BYTES = np.array([(1 << (8 * i)) - 1 for i in range(8)] + [2**64 - 1] * 9, dtype=np.uint64)  # [n] keeps n bytes, n <= 16


class Words(NamedTuple):
    """The table. ``slots`` uint64 (4 * a power of two), ``arena`` uint8, the rest by entry number (int64)."""

    slots: np.ndarray
    arena: np.ndarray
    start: np.ndarray
    size: np.ndarray
    column: np.ndarray
    code: np.ndarray
    codes_used: np.ndarray  # by column
    state: np.ndarray  # COUNT, BYTES
    secrets: np.ndarray  # uint64 (8,), odd


def new_words(columns, secrets):
    """An empty table for that many columns."""
    i64 = np.int64
    by_entry = [np.zeros(SLOTS_MIN // 2, i64) for _ in range(4)]
    slots, arena = np.zeros(SLOTS_MIN * SLOT_WORDS, np.uint64), np.empty(ARENA_BYTES_MIN, np.uint8)
    return Words(slots, arena, *by_entry, np.zeros(columns, i64), np.zeros(2, i64), secrets)


@piece
def fold(left, right):
    """Both halves of the 128-bit product, xored."""
    return multiply_high(left, right) ^ (left * right)


@piece
def hash_128(text, start, size, secrets):
    """Seeded 128-bit hash of ``text[start:start + size]`` as (lo, hi)."""
    lo = item(secrets, 0) ^ (U(size) * item(secrets, 1))
    hi = item(secrets, 2) + U(size)
    left = size
    at = start
    while left > 16:
        first, second = load_u64(text, at), load_u64(text, at + 8)
        lo = fold(lo ^ first, second ^ item(secrets, 3))
        hi = fold(hi ^ second, first ^ item(secrets, 4))
        at += 16
        left -= 16
    first = load_u64(text, at) & item(LOW_BYTES, left)
    second = load_u64(text, at + 8) & item(LOW_BYTES, max(left - 8, 0))
    lo = fold(lo ^ first, second ^ item(secrets, 3))
    hi = fold(hi ^ second, first ^ item(secrets, 4))
    return lo, hi


@piece
def find(text, start, size, column, words):
    """Code of a string of up to 16 bytes that is known already, else -1: ``intern`` without what is rare."""
    if size > 16:
        return np.int64(-1)
    tag = U(size) | (U(column) << U(32))
    first = load_u64(text, start) & item(LOW_BYTES, size)
    second = load_u64(text, start + 8) & item(LOW_BYTES, max(size - 8, 0))
    slot = slot_of(first, second, tag, words)
    while item(words.slots, slot + 3) != U(0):
        if item(words.slots, slot) == first and item(words.slots, slot + 1) == second and item(words.slots, slot + 2) == tag:
            return np.int64(item(words.slots, slot + 3) >> U(32))
        slot = (slot + SLOT_WORDS) & (words.slots.size - 1)
    return np.int64(-1)


@piece
def slot_of(first, second, tag, words):
    """Where the search for such a string begins."""
    mixed = (first ^ tag) * item(words.secrets, 5) + (second ^ item(words.secrets, 6)) * item(words.secrets, 7)
    mixed ^= mixed >> U(32)
    mixed *= item(words.secrets, 5)
    return np.int64((mixed >> U(29)) & U(words.slots.size // SLOT_WORDS - 1)) * SLOT_WORDS


@piece
def intern(text, start, size, column, words):
    """Code of ``text[start:start + size]`` in ``column``, new if need be; FULL if there is no room."""
    tag = U(size) | (U(column) << U(32))
    if size <= 16:
        first = load_u64(text, start) & item(LOW_BYTES, size)
        second = load_u64(text, start + 8) & item(LOW_BYTES, max(size - 8, 0))
    else:
        first, second = hash_128(text, start, size, words.secrets)
    slot = slot_of(first, second, tag, words)
    while item(words.slots, slot + 3) != U(0):
        if item(words.slots, slot) == first and item(words.slots, slot + 1) == second and item(words.slots, slot + 2) == tag:
            entry = np.int64(item(words.slots, slot + 3) & LOW_32) - 1
            if size <= 16 or is_same(text, start, size, words.arena, item(words.start, entry)):
                return np.int64(item(words.slots, slot + 3) >> U(32))
        slot = (slot + SLOT_WORDS) & (words.slots.size - 1)
    return add(text, start, size, column, first, second, tag, slot, words)


@callee
def is_same(text, start, size, other, other_start):
    for i in range(size):
        if text[start + i] != other[other_start + i]:
            return False
    return True


@callee
def add(text, start, size, column, first, second, tag, slot, words):
    """Fill the free ``slot``. A known event name in other letter case is an alias of the known one."""
    entry = words.state[COUNT]
    used = words.state[BYTES]
    if 2 * (entry + 1) > words.slots.size // SLOT_WORDS or entry >= words.start.size or used + size + 64 > words.arena.size:
        return np.int64(FULL)
    for i in range(size):
        words.arena[used + i] = text[start + i]
    code = np.int64(-1)
    if column == 0:
        code = known_event(text, start, size, words)
    if code < 0:
        code = words.codes_used[column]
        words.codes_used[column] += 1
    words.start[entry] = used
    words.size[entry] = size
    words.column[entry] = column
    words.code[entry] = code
    words.state[COUNT] = entry + 1
    words.state[BYTES] = used + size
    words.slots[slot] = first
    words.slots[slot + 1] = second
    words.slots[slot + 2] = tag
    words.slots[slot + 3] = U(entry + 1) | (U(code) << U(32))
    return code


@callee
def known_event(text, start, size, words):
    """Code of the known event name that equals the text but for ASCII letter case, else -1."""
    for entry in range(min(KNOWN_EVENTS, words.state[COUNT])):
        if words.size[entry] != size:
            continue
        same = True
        for i in range(size):
            byte = np.int64(text[start + i])
            other = np.int64(words.arena[words.start[entry] + i])
            if 65 <= byte <= 90:
                byte += 32
            if 65 <= other <= 90:
                other += 32
            if byte != other:
                same = False
                break
        if same:
            return np.int64(entry)
    return np.int64(-1)


@kernel
def intern_one(text, size, column, words):
    """``intern`` for Python: the whole ``text[:size]`` (with spare bytes behind it)."""
    return intern(text, 0, size, column, words)


@kernel
def rehash(old, words):
    """Move the filled slots of ``old`` into the larger, zeroed ``words.slots``."""
    for at in range(0, old.size, SLOT_WORDS):
        if old[at + 3] == U(0):
            continue
        slot = slot_of(old[at], old[at + 1], old[at + 2], words)
        while words.slots[slot + 3] != U(0):
            slot = (slot + SLOT_WORDS) & (words.slots.size - 1)
        for i in range(SLOT_WORDS):
            words.slots[slot + i] = old[at + i]
