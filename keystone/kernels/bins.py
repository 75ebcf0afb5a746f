"""Count how often int64 keys occur, in a hash table that the caller lets grow: bins of sketches, most of all."""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel, piece
from keystone.kernels.session_rows import add_saturating

U = np.uint64
FREE = -1  # a key is not negative


@piece
def add_count(key, count, keys, counts, used):
    """Add to one key's count, saturating. ``keys`` int64 (a power of two, FREE or a key), ``counts`` int64 beside it, ``used`` int64 (1): keys
    there are. There is room for one more.
    """
    mask = U(keys.size - 1)
    mixed = (U(key) ^ (U(key) >> U(29))) * U(0x9E3779B97F4A7C15)
    at = np.int64((mixed >> U(32)) & mask)
    while keys[at] != FREE and keys[at] != key:
        at = np.int64(U(at + 1) & mask)
    if keys[at] == FREE:
        keys[at] = key
        counts[at] = 0
        used[0] += 1
    counts[at] = add_saturating(counts[at], count)


@kernel
def add_counts(given, given_counts, first, keys, counts, used):
    """Add ``given`` from ``first`` on until the table is half full. Returns where to go on, the size of ``given`` when done."""
    i = first
    while i < given.size and 2 * used[0] < keys.size:
        add_count(given[i], given_counts[i], keys, counts, used)
        i += 1
    return i


def warm_up() -> None:
    """Compile, or load, the kernel here."""
    given = np.zeros(1, np.int64)
    add_counts(given, given, 0, np.full(4, FREE, np.int64), np.zeros(4, np.int64), np.zeros(1, np.int64))
