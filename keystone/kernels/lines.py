"""Count the lines of a buffer, and copy pieces out of it."""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel
from keystone.kernels.wide import copy_32, equal_32, ones

LF = np.uint64(10)


@kernel
def count_lines(text, size):
    """Line feeds in ``text[:size]`` (uint8, read-only, with 32 spare bytes behind it)."""
    lines = np.int64(0)
    whole = size - size % 32
    for at in range(0, whole, 32):
        lines += ones(equal_32(text, at, LF))
    rest = equal_32(text, whole, LF) & ((np.uint64(1) << np.uint64(size - whole)) - np.uint64(1))
    return lines + ones(rest)


@kernel
def copy_pieces(text, starts, ends, out):
    """Copy into ``out`` one piece behind the other: the one that ends at ``ends[i]`` there is the one at ``starts[i]`` in ``text`` (read-only).

    Both have 32 spare bytes at their end.
    """
    at = np.int64(0)
    for i in range(starts.size):
        for step in range(0, ends[i] - at, 32):
            copy_32(out, at + step, text, starts[i] + step)
        at = ends[i]


def warm_up() -> None:
    """Compile, or load, the kernels here."""
    text = np.frombuffer(b"\n" * 64, np.uint8)
    count_lines(text, 1)
    copy_pieces(text, np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(64, np.uint8))
