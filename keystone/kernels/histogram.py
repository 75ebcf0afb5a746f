"""Count values into log-linear buckets."""

# mypy: ignore-errors

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from keystone.kernels.compiler import kernel

MANTISSA_BITS = 7  # 128 buckets an octave: 0.8% wide, so the middle of one is within 0.4%
SMALLEST_EXPONENT = -10  # 2^-10 ms = 1 us: all below share the first bucket
LARGEST_EXPONENT = 42  # 2^42 ms = 139 years: all from there on share the last
SHIFT = 52 - MANTISSA_BITS
FIRST_KEY = (1023 + SMALLEST_EXPONENT) << MANTISSA_BITS  # exponent and leading mantissa bits of the smallest
BUCKETS = ((LARGEST_EXPONENT - SMALLEST_EXPONENT) << MANTISSA_BITS) + 2

NEGATIVES, UNUSABLE = 0, 1  # places in ``tallies``
LEAST, MOST = 0, 1  # places in ``extremes``


@intrinsic
def bits_of(typing, value):
    """The eight bytes of a float64 as int64: they rise with the value where that is not negative."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@kernel
def count_values(values, counts, tallies, extremes):
    """Count ``values`` (int64 or float64, ms) into ``counts`` (int64, BUCKETS).

    A negative value counts as zero, and in ``tallies[NEGATIVES]``; NaN and the infinities in ``tallies[UNUSABLE]`` only
    (both int64). ``extremes`` float64: the least and the most, moved along.
    """
    least, most = extremes[LEAST], extremes[MOST]
    negatives = np.int64(0)
    unusable = np.int64(0)
    for i in range(values.size):
        value = np.float64(values[i])
        if not abs(value) < np.inf:
            unusable += 1
            continue
        least = min(least, value)
        most = max(most, value)
        negatives += value < 0.0
        key = (bits_of(max(value, 0.0)) >> SHIFT) - FIRST_KEY + 1
        counts[min(max(key, 0), BUCKETS - 1)] += 1
    extremes[LEAST], extremes[MOST] = least, most
    tallies[NEGATIVES] += negatives
    tallies[UNUSABLE] += unusable


def warm_up() -> None:
    """Compile, or load, ``count_values`` for both kinds of values."""
    for dtype in (np.int64, np.float64):
        values = np.zeros(1, dtype)
        values.flags.writeable = False
        count_values(values, np.zeros(BUCKETS, np.int64), np.zeros(2, np.int64), np.zeros(2, np.float64))
