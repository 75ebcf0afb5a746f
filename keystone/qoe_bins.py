"""Sketches of startup times as counts of bins: added up exactly, in any order, and asked for quantiles.

A *key* is a cohort's number and a bin: ``cohort << BIN_SHIFT | bin``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keystone.events import I64
from keystone.kernels.bins import FREE, add_counts
from keystone.kernels.cohorts import BIN_SHIFT

BIN_MASK: Final = (1 << BIN_SHIFT) - 1
SIZE_MIN: Final = 1 << 10
_NARROW: Final = ("i1", "i2", "i4", "i8")

#: Adds from ``first`` on to (keys, counts, used), and returns where to go on with a larger table.
Adding = Callable[[int, I64, I64, I64], int]


class Tally:
    """How often each key came. Memory: 32 to 128 B for each key there is, given back by ``take``. One thread uses it."""

    def __init__(self) -> None:
        self._used: I64 = np.zeros(1, np.int64)
        self._clear()

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._counts.nbytes

    def add(self, keys: I64, counts: I64) -> None:
        """``keys`` >= 0, int64 like ``counts``; any key any number of times."""
        self.fill(keys.size, lambda first, *table: add_counts(keys, counts, first, *table))

    def fill(self, size: int, adding: Adding) -> None:
        """Have ``adding`` add ``size`` things of its own."""
        first = adding(0, self._keys, self._counts, self._used)
        while first < size:
            self._grow()
            first = adding(first, self._keys, self._counts, self._used)

    def take(self) -> tuple[I64, I64]:
        """The keys that came, rising, and their counts; begins anew."""
        places = np.flatnonzero(self._keys != FREE)
        keys, counts = self._keys[places], self._counts[places]
        order = np.argsort(keys)
        self._clear()
        return keys[order], counts[order]

    def _clear(self) -> None:
        self._used[0] = 0
        self._keys, self._counts = np.full(SIZE_MIN, FREE, np.int64), np.zeros(SIZE_MIN, np.int64)

    def _grow(self) -> None:
        keys, counts = self._keys, self._counts
        places = np.flatnonzero(keys != FREE)
        self._used[0] = 0
        self._keys, self._counts = np.full(4 * keys.size, FREE, np.int64), np.zeros(4 * keys.size, np.int64)
        add_counts(keys[places], counts[places], 0, self._keys, self._counts, self._used)


def added_up(parts: Iterable[tuple[I64, I64]]) -> tuple[I64, I64]:
    """Keys and counts of all parts together: keys rising, each once."""
    tally = Tally()
    for keys, counts in parts:
        tally.add(keys, counts)
    return tally.take()


def nearest_ranks(keys: I64, counts: I64, percents: Sequence[int]) -> tuple[I64, I64]:
    """Quantiles by nearest rank. ``keys`` rising, each once, with what it counts.

    Returns the cohorts' numbers, rising, and for each percent and cohort the bin that the value of that rank fell into: (percents, cohorts).
    """
    cohorts, firsts = np.unique(keys >> BIN_SHIFT, return_index=True)
    reached = np.cumsum(counts)
    before = np.concatenate((np.zeros(1, np.int64), reached))[firsts]
    totals = np.diff(np.concatenate((before, reached[-1:])))
    ranks = (np.array(percents, np.int64)[:, None] * totals + 99) // 100
    return cohorts, keys[np.searchsorted(reached, before + ranks)] & BIN_MASK


def narrowed(column: I64) -> npt.NDArray[Any]:
    """The same in the narrowest type that holds it."""
    least, most = (int(column.min()), int(column.max())) if column.size else (0, 0)
    fits = (width for width in _NARROW if np.iinfo(width).min <= least and most <= np.iinfo(width).max)
    return column.astype(f"<{next(fits)}")
